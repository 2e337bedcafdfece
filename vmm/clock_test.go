package vmm_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
)

// clockOf reads how far the clock of a guest is ahead of the host's, after it was changed by that.
func clockOf(t *testing.T, v *vmm.VM, by time.Duration) time.Duration {
	t.Helper()
	clock := v.Snapshot().Agent().(guest.Clock)
	r, err := clock.AdjustClock(context.Background(), guest.Adjustment{By: by})
	if err != nil {
		t.Fatal(err)
	}
	return time.Until(time.Unix(0, r.Real))
}

// clockIs waits until the guest's clock is that far ahead, within 200 ms.
func clockIs(t *testing.T, v *vmm.VM, want time.Duration) {
	t.Helper()
	end := time.Now().Add(10 * time.Second)
	for ; (clockOf(t, v, 0) - want).Abs() > 200*time.Millisecond; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the clock is %v ahead, want %v", clockOf(t, v, 0), want)
		}
	}
}

// moveHostClock lets the test move the host's clock, and correct drift so often.
func moveHostClock(t *testing.T, every time.Duration) (slept, wall *atomic.Int64) {
	t.Helper()
	was := *vmm.ClockEvery
	slept, wall, restore := vmm.MoveHostClock()
	*vmm.ClockEvery = every
	t.Cleanup(func() { *vmm.ClockEvery = was; restore() })
	return slept, wall
}

const hand = 5 * time.Minute // by which a test sets a guest's clock by hand

// After each standstill the clock is right, also one that was set by hand before.
func TestClockAfterStandstill(t *testing.T) {
	slept, wall := moveHostClock(t, time.Hour)
	dir, store := t.TempDir(), newStore()
	m := open(t, dir, store)
	v := create(t, m, "web", "")
	do(t, v, vmm.Start, nil)
	ready(t, v)
	clockIs(t, v, 0)

	clockOf(t, v, hand)
	do(t, v, vmm.Pause, nil)
	do(t, v, vmm.Resume, nil)
	clockIs(t, v, 0)

	clockOf(t, v, -hand)
	slept.Add(int64(time.Hour))
	clockIs(t, v, 0)

	// A step of the host's own clock is none: what was set by hand stays.
	clockOf(t, v, hand)
	wall.Add(int64(time.Hour))
	never(t, 300*time.Millisecond, func() bool { return clockOf(t, v, 0) < hand/2 })

	if err := m.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	v = open(t, dir, store).VM("web") // adopted
	ready(t, v)
	clockIs(t, v, 0)
}

// never fails if something happens within that time.
func never(t *testing.T, within time.Duration, happened func() bool) {
	t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if happened() {
			t.Fatal("it has happened")
		}
	}
}

// A clock that loses time is corrected, until somebody sets it. A program that keeps it, and an
// agent that cannot set it, are left alone.
func TestClockDrift(t *testing.T) {
	_, wall := moveHostClock(t, 50*time.Millisecond)
	m := open(t, t.TempDir(), newStore())
	v := create(t, m, "web", "fake.drift=-0.5")
	do(t, v, vmm.Start, nil)
	ready(t, v)
	never(t, time.Second, func() bool { return clockOf(t, v, 0).Abs() > 300*time.Millisecond })

	clockOf(t, v, hand)
	began := time.Now()
	never(t, 500*time.Millisecond, func() bool {
		off := clockOf(t, v, 0) - hand + time.Since(began)/2
		return off.Abs() > 300*time.Millisecond
	})
	do(t, v, vmm.Pause, nil) // from its end on it is kept again
	do(t, v, vmm.Resume, nil)
	clockIs(t, v, 0)
	never(t, 500*time.Millisecond, func() bool { return clockOf(t, v, 0).Abs() > 300*time.Millisecond })

	// A step of the host's clock only makes a correction due at once. It changes no time here.
	wall.Add(int64(time.Hour))
	never(t, 100*time.Millisecond, func() bool { return clockOf(t, v, 0).Abs() > 300*time.Millisecond })
}

func TestClockOfOthers(t *testing.T) {
	moveHostClock(t, 20*time.Millisecond)
	m := open(t, t.TempDir(), newStore())
	ntp := create(t, m, "ntp", "fake.clock=ntp fake.drift=-0.5")
	do(t, ntp, vmm.Start, nil)
	ready(t, ntp)
	began := time.Now()
	never(t, 300*time.Millisecond, func() bool {
		return (clockOf(t, ntp, 0) + time.Since(began)/2).Abs() > 200*time.Millisecond
	})
	do(t, ntp, vmm.Pause, nil)
	do(t, ntp, vmm.Resume, nil)
	clockIs(t, ntp, 0) // after a standstill it is set all the same

	for _, word := range []string{"old", "hang"} {
		v := create(t, m, word, "fake.clock="+word)
		do(t, v, vmm.Start, nil)
		if word == "old" {
			ready(t, v)
		}
		do(t, v, vmm.Pause, nil)
		do(t, v, vmm.Resume, nil)
		do(t, v, vmm.Stop, nil)
	}
}
