package fs

import (
	"context"
	"errors"
	"testing"
	"time"
)

// An import ends by itself when no write arrives.
func TestIdleImport(t *testing.T) {
	c := &chunks{
		importer: &importer{written: make(chan struct{})},
		ctx:      context.Background(), idle: time.Millisecond,
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%d bytes, error %v", n, err)
	}
}
