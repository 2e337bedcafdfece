package vmm_test

import (
	"errors"
	"testing"
	"time"

	"banger/vmm"
)

// Accept does not wait while a snapshot takes an hour.
func TestAcceptDoesNotWait(t *testing.T) {
	v := create(t, open(t, t.TempDir(), newStore()), "web", "fake.snapshot=1h")
	configure(t, v, func(c *vmm.Config) { c.Disk = 1 << 20 })
	do(t, v, vmm.Start, nil)
	taken := make(chan error, 1)
	go func() { taken <- v.TakeSnapshot(t.Context(), "before", nil) }()
	until(t, v, "taking a snapshot", func(s *vmm.Snapshot) bool { return len(s.Saved) == 1 })
	for _, step := range []struct {
		command vmm.Command
		want    error
	}{
		{vmm.Stop, vmm.ErrBusy}, {vmm.Pause, vmm.ErrBusy}, {vmm.Restart, vmm.ErrBusy},
		{vmm.Start, vmm.ErrBusy}, {vmm.Kill, nil},
	} {
		began := time.Now()
		result := make(chan error, 1)
		go func() { result <- v.Accept(t.Context(), step.command) }()
		select {
		case err := <-result:
			if !errors.Is(err, step.want) {
				t.Errorf("%s: %v, want %v", step.command, err, step.want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s still waits after %v", step.command, time.Since(began))
		}
	}
	await(t, v, vmm.Stopped)
	if err := <-taken; err == nil {
		t.Error("the snapshot was taken")
	}
}

// Kills are accepted while the stop that they cancel is still ending.
func TestAcceptKill(t *testing.T) {
	v := create(t, open(t, t.TempDir(), newStore()), "web", "fake.stop=ignore")
	configure(t, v, func(c *vmm.Config) { c.StopTimeout = time.Hour })
	do(t, v, vmm.Start, nil)
	if err := v.Accept(t.Context(), vmm.Stop); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := v.Accept(t.Context(), vmm.Kill); err != nil {
			t.Error(err)
		}
	}
	await(t, v, vmm.Stopped)
}
