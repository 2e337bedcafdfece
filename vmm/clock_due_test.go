package vmm

import (
	"errors"
	"testing"
	"time"
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
