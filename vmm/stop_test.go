package vmm_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"banger/vmm"
)

// leave ends the daemon at once, while a VM stops.
func leave(t *testing.T, m *vmm.Manager, v *vmm.VM) {
	t.Helper()
	if err := v.Accept(t.Context(), vmm.Stop); err != nil {
		t.Fatal(err)
	}
	await(t, v, vmm.Stopping)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	began := time.Now()
	if err := m.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the daemon's end took %v", took)
	}
}

// Guests go on stopping when the daemon ends. The next daemon kills those that are not off in time.
func TestStopOutlivesDaemon(t *testing.T) {
	for _, c := range []struct {
		name, cmdline string
		timeout       time.Duration
		command       vmm.Command // to the next daemon
		exit          string      // the reason in the event
	}{
		{"itself", "fake.stop=ignore fake.poweroff=500ms", time.Hour, "",
			"the guest powered itself off"},
		{"late", "fake.stop=ignore", 500 * time.Millisecond, "", "not off after 500ms"},
		{"unasked", "fake.stop=hang", 500 * time.Millisecond, "", "not off after 500ms"},
		{"asked too late", "fake.agent=slow:1h fake.stop=ignore", 500 * time.Millisecond, "",
			"not off after 500ms"},
		{"killed", "fake.stop=ignore", time.Hour, vmm.Kill, "as asked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, store := t.TempDir(), newStore()
			m := open(t, dir, store)
			v := create(t, m, "web", c.cmdline)
			configure(t, v, func(s *vmm.Config) { s.StopTimeout = c.timeout })
			do(t, v, vmm.Start, nil)
			leave(t, m, v)
			m = open(t, dir, store)
			v = m.VM("web")
			if s := v.Snapshot(); s.State != vmm.Stopping {
				t.Fatalf("the next daemon finds it %s", s.State)
			}
			do(t, v, vmm.Start, vmm.ErrBusy)
			if c.command != "" {
				do(t, v, c.command, nil)
			}
			await(t, v, vmm.Stopped)
			exits := ""
			for _, e := range v.Events() {
				if e.What == vmm.EventExit {
					exits += e.Detail
				}
			}
			if !strings.HasSuffix(exits, c.exit) {
				t.Errorf("exit %q, want %q", exits, c.exit)
			}
			if s := v.Snapshot(); !s.StopBy.IsZero() || s.Machine != nil {
				t.Errorf("after it: to be stopped by %v, machine %v", s.StopBy, s.Machine)
			}
		})
	}
}
