package vmm

import (
	"context"
	"errors"
	"testing"
	"time"

	"banger/vmm/guest"
)

func TestClockSettles(t *testing.T) {
	for _, c := range []struct {
		name  string
		stood bool
		since time.Duration // the last time that it was exact
		off   time.Duration
		err   error
		want  time.Duration
	}{
		{"exact", false, time.Minute, 0, nil, time.Minute},
		{"a little drift", false, time.Minute, 100 * time.Millisecond, nil, time.Minute},
		{"much drift", false, time.Minute, -3 * time.Second, nil, 10 * time.Second},
		{"most of the time", false, 10 * time.Second, -9 * time.Second, nil, 2 * time.Second},
		{"less of it", false, 2 * time.Second, -20 * time.Millisecond, nil, 50 * time.Second},
		{"after a standstill", true, time.Hour, -time.Hour, nil, 10 * time.Second},
		{"not set after one", true, time.Hour, 0, errors.New("busy"), time.Second},
		{"not corrected", false, time.Minute, 0, errors.New("busy"), time.Minute},
	} {
		now := time.Now()
		clock := guestClock{stood: c.stood, read: now.Add(-c.since), active: true}
		clock.settle(c.off, c.err, time.Minute)
		if got := clock.due.Sub(now); (got - c.want).Abs() > 100*time.Millisecond {
			t.Errorf("%s: due after %v, want %v", c.name, got, c.want)
		}
		if clock.active || clock.stood != (c.stood && c.err != nil) {
			t.Errorf("%s: %+v", c.name, clock)
		}
	}
}

// patient is an agent that never answers about its clock.
type patient struct {
	guest.Agent
	deadline bool
}

func (p *patient) AdjustClock(ctx context.Context, _ guest.Adjustment) (guest.ClockReading, error) {
	_, p.deadline = ctx.Deadline()
	<-ctx.Done()
	return guest.ClockReading{}, ctx.Err()
}

// A guest that is too busy to read its clock is left alone, without a deadline: a client that misses
// one ends all commands in the guest.
func TestClockOfABusyGuest(t *testing.T) {
	shorten(t, &clockWait)
	var p patient
	clock := guestClock{stood: true}
	_, err := clock.adjust(t.Context(), &p)
	if !errors.Is(err, context.Canceled) || p.deadline {
		t.Errorf("%v, with a deadline: %v", err, p.deadline)
	}
}
