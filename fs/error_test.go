package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"banger/vmm"
)

// TestRefusalsOfMany expects that only the refusal of the least recent uid is dropped.
func TestRefusalsOfMany(t *testing.T) {
	s := &Server{refusals: refusals{last: make(map[uint32]string)}}
	for uid := range uint32(maxRefusals) {
		s.keepRefusal(uid, errors.New("first"))
	}
	s.keepRefusal(0, errors.New("again"))
	s.keepRefusal(maxRefusals, errors.New("one more"))
	if len(s.refusals.last) != maxRefusals || len(s.refusals.uids) != maxRefusals {
		t.Errorf("%d refusals, %d uids", len(s.refusals.last), len(s.refusals.uids))
	}
	for uid, want := range map[uint32]string{
		0: "again", 1: "", 2: "first", maxRefusals: "one more",
	} {
		if got := s.refusals.last[uid]; got != want {
			t.Errorf("uid %d: %q, not %q", uid, got, want)
		}
	}
}

// TestLoggedOnce expects a line in the log only for errors that nothing else explains. A wait for
// what can no longer happen ends with an error that was logged before.
func TestLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	s := &Server{refusals: refusals{last: make(map[uint32]string)}}
	s.o.Log = slog.New(slog.NewTextHandler(&log, nil))
	for _, x := range []struct {
		err    error
		logged bool
	}{
		{fmt.Errorf("image app: no such tag: %w", vmm.ErrGone), false},
		{fmt.Errorf("session 1 was closed: %w", vmm.ErrGone), false},
		{vmm.ErrTimeout, false},
		{errors.New("short write"), true},
		{syscall.EIO, true},
	} {
		log.Reset()
		r := &request{file: &file{name: "ready"}}
		r.server, r.ctx = s, context.Background()
		if s.unread(r, x.err); strings.Contains(log.String(), "level=ERROR") != x.logged {
			t.Errorf("of %q the log has %q", x.err, log.String())
		}
		log.Reset()
		if s.failed(r, x.err); strings.Contains(log.String(), "level=ERROR") != x.logged {
			t.Errorf("of a write refused with %q the log has %q", x.err, log.String())
		}
	}
}
