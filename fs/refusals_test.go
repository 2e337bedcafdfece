package fs

import (
	"errors"
	"testing"
)

// TestRefusalsOfMany finds the refusal of the uid that was refused longest ago forgotten, and no other.
func TestRefusalsOfMany(t *testing.T) {
	s := &Server{refusals: make(map[uint32]string)}
	for uid := range uint32(maxRefusals) {
		s.keepRefusal(uid, errors.New("first"))
	}
	s.keepRefusal(0, errors.New("again"))
	s.keepRefusal(maxRefusals, errors.New("one more"))
	if len(s.refusals) != maxRefusals || len(s.lastUIDs) != maxRefusals {
		t.Errorf("%d refusals, %d uids", len(s.refusals), len(s.lastUIDs))
	}
	for uid, want := range map[uint32]string{0: "again", 1: "", 2: "first", maxRefusals: "one more"} {
		if got := s.refusals[uid]; got != want {
			t.Errorf("uid %d: %q, not %q", uid, got, want)
		}
	}
}
