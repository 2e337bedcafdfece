package network

import (
	"context"
	"io"
	"log/slog"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// brokenSocket fails for ever, and counts how often it was asked.
type brokenSocket struct {
	asked *int
	end   func() // for a reader that never pauses
}

func (s brokenSocket) Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error) {
	if *s.asked++; *s.asked > 1000 {
		s.end()
	}
	return nil, nil, unix.EBADF
}

func (brokenSocket) Close() {}

// TestBrokenSocket is a socket of notifications whose error stays.
func TestBrokenSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Network{o: Options{Bridge: "nobodyhasit", Log: slog.New(slog.NewTextHandler(io.Discard, nil))}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		asked, made := 0, 0
		n.keep(ctx, brokenSocket{&asked, cancel}, func() (notifications, error) {
			made++
			if made%2 == 0 {
				return nil, unix.ENOMEM
			}
			return brokenSocket{&asked, cancel}, nil
		})
		if asked < 2 || made < 4 || made > 12 {
			t.Errorf("in a minute it was asked %d times and replaced %d times", asked, made)
		}
	})
}
