package vmm_test

import (
	"context"
	"testing"
	"time"

	"banger/vmm"
)

// A use of a VM, such as a byte typed on its console, publishes no snapshot and wakes no waiter. It
// is the last use all the same, also for the next daemon.
func TestTouchIsCheap(t *testing.T) {
	dir, store := t.TempDir(), newStore()
	m := open(t, dir, store)
	v := create(t, m, "web", "")
	before, changed := v.Snapshot(), v.Changed()
	begun := time.Now()
	v.Touch()
	v.Use()()
	if v.Snapshot() != before {
		t.Error("a use published a snapshot")
	}
	select {
	case <-changed:
		t.Error("a use woke the waiters for a change")
	default:
	}
	used := v.Touched()
	if used.Before(begun) {
		t.Errorf("the last use was %v ago", time.Since(used))
	}
	past := time.Unix(1_000_000_000, 0)
	v.SetTouched(past)
	if !v.Touched().Equal(past) {
		t.Errorf("the last use is %v, not the one that was set", v.Touched())
	}
	v.Touch()
	used = v.Touched()
	if err := m.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	v = open(t, dir, store).VM("web")
	if v == nil || !v.Touched().Equal(used) {
		t.Error("the last use is lost with the daemon")
	}
}

// idle_timeout stops a VM only when the last use is that long ago.
func TestUseIsNoIdleness(t *testing.T) {
	m := open(t, t.TempDir(), newStore())
	v := create(t, m, "web", "")
	const timeout = 200 * time.Millisecond
	configure(t, v, func(c *vmm.Config) { c.IdleTimeout = timeout })
	do(t, v, vmm.Start, nil)
	for begun := time.Now(); time.Since(begun) < 3*timeout; {
		last := time.Now()
		v.Touch()
		if v.Snapshot().State != vmm.Running && time.Since(last) < timeout/2 {
			t.Fatalf("it is %s while it is used", v.Snapshot().State)
		}
		changed := v.Changed()
		select {
		case <-changed:
		case <-time.After(timeout / 20):
		}
	}
	used := v.Touched()
	await(t, v, vmm.Stopped)
	if idle := time.Since(used); idle < timeout {
		t.Errorf("it was stopped %v after its last use", idle)
	}
}
