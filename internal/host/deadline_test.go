package host

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// TestDeadline ends a read with its context, and leaves a connection alone after release.
func TestDeadline(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	ctx, cancel := context.WithCancel(t.Context())
	release := Deadline(ctx, near.SetReadDeadline)
	cancel()
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	release()

	ctx, cancel = context.WithCancel(t.Context())
	Deadline(ctx, func(time.Time) error { t.Error("called after release"); return nil })()
	cancel()
}
