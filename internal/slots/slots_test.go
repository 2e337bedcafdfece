package slots

import (
	"context"
	"errors"
	"testing"
)

const alice, bob, carol, dave = 1001, 1002, 1003, 1004

// One user's builds leave slots for others, and a waiter gets the next slot that it may have.
func TestSlots(t *testing.T) {
	slots := New(4, 2, 2)
	for _, c := range []struct {
		uid  uint32
		want bool
	}{
		{alice, true}, {alice, true}, {alice, false},
		{bob, true}, {bob, false}, {carol, true}, {dave, false},
	} {
		if got := slots.Try(c.uid); got != c.want {
			t.Errorf("uid %d: %v", c.uid, got)
		}
	}
	ctx := context.Background()
	waits := func(uid uint32) chan error {
		done, before := make(chan error, 1), len(slots.queue)
		go func() { done <- slots.Wait(ctx, uid) }()
		for {
			slots.mu.Lock()
			queued := len(slots.queue) > before
			slots.mu.Unlock()
			if queued {
				return done
			}
		}
	}
	second, first := waits(alice), waits(dave)
	slots.End(bob)
	if err := <-first; err != nil {
		t.Error(err)
	}
	slots.End(alice)
	slots.End(carol)
	slots.End(dave)
	if err := <-second; err != nil {
		t.Error(err)
	}
	if slots.used != 2 || slots.of[alice] != 2 || len(slots.of) != 1 {
		t.Errorf("%d are used, by uid %v", slots.used, slots.of)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := slots.Wait(ended, alice); !errors.Is(err, context.Canceled) || len(slots.queue) != 0 {
		t.Errorf("error %v, %d wait", err, len(slots.queue))
	}
}
