package fs

import (
	"context"
	"errors"
	"testing"
	"time"
)

// An import to which nobody writes ends by itself.
func TestIdleImport(t *testing.T) {
	c := &chunks{in: &intake{more: make(chan struct{})}, ctx: context.Background(), idle: time.Millisecond}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%d bytes, error %v", n, err)
	}
}
