package guest

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"banger/internal/host"
)

// execStream is a connection whose reads and writes end with a context, one of each at a time.
type execStream struct {
	conn          net.Conn
	reads, writes chan struct{} // of one each, held by the goroutine that reads or writes
	closed        atomic.Bool
	received      atomic.Int64 // bytes
}

func newExecStream(conn net.Conn) *execStream {
	return &execStream{conn: conn, reads: make(chan struct{}, 1), writes: make(chan struct{}, 1)}
}

func (s *execStream) Read(ctx context.Context, p []byte) (int, error) {
	return s.within(ctx, s.reads, s.conn.SetReadDeadline, func() (int, error) {
		n, err := s.conn.Read(p)
		s.received.Add(int64(n))
		return n, err
	})
}

func (s *execStream) Write(ctx context.Context, p []byte) (int, error) {
	return s.write(ctx, func() (int, error) { return s.conn.Write(p) })
}

// write calls f, which may write.
func (s *execStream) write(ctx context.Context, f func() (int, error)) (int, error) {
	return s.within(ctx, s.writes, s.conn.SetWriteDeadline, f)
}

// within calls f, which reads or writes, with turn held. It returns ctx's error when that ends
// first.
func (s *execStream) within(
	ctx context.Context, turn chan struct{}, deadline func(time.Time) error, f func() (int, error),
) (int, error) {
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	_ = deadline(time.Time{}) // a connection that refuses it fails below
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	release := host.Deadline(ctx, deadline)
	n, err := f()
	release()
	if isTimeout(err) && ctx.Err() != nil {
		err = ctx.Err()
	}
	return n, err
}
