package vmm_test

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"banger/vmm"
)

// words returns what the VM's events say, without those of other kinds.
func words(v *vmm.VM, kinds ...string) []string {
	var all []string
	for _, e := range v.Events() {
		if slices.Contains(kinds, e.What) {
			all = append(all, e.What+" "+e.Detail)
		}
	}
	return all
}

func TestReboot(t *testing.T) {
	v := create(t, open(t, t.TempDir(), newStore()), "web", "fake.listen=80/tcp")
	do(t, v, vmm.Start, nil)
	typed := func(line string) {
		if _, err := v.Snapshot().Machine.Console().Write(t.Context(), []byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	run := v.Snapshot().Run
	typed("reboot\n")
	until(t, v, "running again", func(s *vmm.Snapshot) bool {
		return s.State == vmm.Running && s.Run == run+1 && s.Machine != nil
	})
	if s := v.Snapshot(); s.Error != "" || s.Rebooting {
		t.Errorf("after the reboot: error %q, rebooting %v", s.Error, s.Rebooting)
	}
	typed("poweroff\n")
	await(t, v, vmm.Stopped)
	want := []string{"state starting", "state running", "exit exited 0: the guest rebooted",
		"reboot in 1s", "state starting", "state running",
		"exit exited 0: the guest powered itself off", "state stopped"}
	got := words(v, "state", "exit", "reboot")
	// The event of a state follows the state.
	for end := time.Now().Add(20 * time.Second); len(got) < len(want) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
		got = words(v, "state", "exit", "reboot")
	}
	if !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

// A guest that reboots at once is started more and more rarely. A stop and a kill end that.
func TestRebootLoop(t *testing.T) {
	for _, c := range []vmm.Command{vmm.Stop, vmm.Kill} {
		t.Run(string(c), func(t *testing.T) {
			t.Parallel()
			v := create(t, open(t, t.TempDir(), newStore()), "web", "fake.reboot=1ms")
			do(t, v, vmm.Start, nil)
			until(t, v, "in its second wait", func(s *vmm.Snapshot) bool {
				return s.State == vmm.Starting && len(words(v, "reboot")) == 2
			})
			do(t, v, vmm.Start, vmm.ErrBusy)
			do(t, v, vmm.Restart, vmm.ErrBusy)
			do(t, v, vmm.Pause, vmm.ErrBusy)
			const sentence = "the guest rebooted 0.0 s after its start, 2 times in a row: " +
				"it starts again in 2 s"
			if s := v.Snapshot(); s.Error != sentence || s.Machine != nil || s.Process.PID != 0 {
				t.Errorf("while it waits: error %q, machine %v", s.Error, s.Machine)
			}
			do(t, v, c, nil)
			await(t, v, vmm.Stopped)
			want := []string{"reboot in 1s", "reboot in 2s"}
			if got := words(v, "reboot"); !slices.Equal(got, want) {
				t.Errorf("events %q, want %q", got, want)
			}
			if s := v.Snapshot(); s.Rebooting || s.Error != "" {
				t.Errorf("after it: rebooting %v, error %q", s.Rebooting, s.Error)
			}
		})
	}
}

// vanishing are images until they are gone.
type vanishing struct {
	images
	gone *atomic.Bool
}

func (i vanishing) Image(name string) (vmm.Image, error) {
	if i.gone.Load() {
		return vmm.Image{}, &vmm.MissingImage{Name: name}
	}
	return i.images.Image(name)
}

// A start that is refused leaves no VM that seems to start.
func TestRebootRefused(t *testing.T) {
	set := vanishing{gone: new(atomic.Bool)}
	v := create(t, openWith(t, t.TempDir(), newStore(), set), "web", "fake.reboot=1ms")
	do(t, v, vmm.Start, nil)
	until(t, v, "rebooting", func(s *vmm.Snapshot) bool { return s.Rebooting })
	set.gone.Store(true)
	await(t, v, vmm.Failed)
	const sentence = `cannot start web: there is no built-in image yet: ` + "`banger image builtin` makes it"
	if s := v.Snapshot(); s.Error != sentence || s.Rebooting {
		t.Errorf("error %q, rebooting %v", s.Error, s.Rebooting)
	}
}

// now returns a store with what is recorded at this moment.
func (s *memory) now() *memory {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &memory{last: s.last, records: maps.Clone(s.records)}
}

// A daemon that ends, or dies, during a reboot leaves the rest to the next one.
func TestRebootOverDaemons(t *testing.T) {
	for _, how := range []string{"ends", "dies"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			dir, store := t.TempDir(), newStore()
			m := open(t, dir, store)
			v := create(t, m, "web", "fake.reboot=1ms")
			do(t, v, vmm.Start, nil)
			until(t, v, "rebooting", func(s *vmm.Snapshot) bool { return s.Rebooting })
			if how == "dies" {
				store = store.now()
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if err := m.Close(ctx); err != nil || ctx.Err() != nil {
				t.Fatalf("it does not end: %v", err)
			}
			next := open(t, dir, store).VM("web")
			until(t, next, "started", func(s *vmm.Snapshot) bool { return s.State == vmm.Running })
			await(t, next, vmm.Starting) // by its next reboot
			do(t, next, vmm.Stop, nil)
		})
	}
}
