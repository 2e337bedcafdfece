package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
)

// EndStream is the path of the stream on which an agent says how its image's program ended. An
// agent whose guest has no such program, and one of an earlier version, refuses it.
const EndStream = "/end"

const (
	maxEnd      = 4 << 10 // bytes that the host reads of an End
	maxEndError = 512     // bytes of its sentence that the host keeps
	maxStatus   = 255
)

// End is how the program of an image ended or, with Error, why it could not begin.
type End struct {
	// Status of a program that could not begin is that of docker-run(1): 127 if it is not there,
	// 126 if it cannot be executed, 125 for what is wrong around it.
	Status ExecStatus `json:"status"`
	Error  string     `json:"error,omitempty"` // a sentence
}

// EndHandler returns the agent's side of EndStream. Each stream waits until await returns and then
// sends its result. collected is called when the host has kept that.
func EndHandler(await func() End, collected func()) StreamHandler {
	return func(json.RawMessage) (func(net.Conn), error) {
		return func(conn net.Conn) {
			defer conn.Close()
			end := await()
			if json.NewEncoder(conn).Encode(end) != nil {
				return // another daemon asks again
			}
			if _, err := io.ReadFull(conn, make([]byte, 1)); err == nil {
				collected()
			}
		}, nil
	}
}

// CollectEnd blocks until the program of the guest's image has ended, and calls keep with that.
// After that the agent lets the guest power itself off. The error is ErrUnsupported if the agent
// refuses the stream. Others are those of Stream, or that of a stream that broke.
func CollectEnd(ctx context.Context, s Streamer, keep func(End)) error {
	conn, err := s.Stream(ctx, EndStream, nil)
	var refused *badAnswer
	if errors.As(err, &refused) && refused.status != 0 {
		return fmt.Errorf("%w: %w", err, ErrUnsupported)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var end End
	if err := json.NewDecoder(io.LimitReader(conn, maxEnd)).Decode(&end); err != nil {
		return fmt.Errorf("cannot read how the guest's program ended: %w", err)
	}
	keep(end.bounded())
	_, err = conn.Write([]byte{'\n'})
	return err
}

// bounded returns an End that a guest may have invented, as one that can be.
func (e End) bounded() End {
	return End{
		Status: ExecStatus{Code: min(max(e.Status.Code, 0), maxStatus),
			Signal: min(max(e.Status.Signal, 0), maxSignal)},
		Error: cut(e.Error, maxEndError),
	}
}
