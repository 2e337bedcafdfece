package vmm_test

import (
	"errors"
	"testing"
	"time"

	"banger/vmm"
)

// gone waits until the Manager has no VM of that name.
func gone(t *testing.T, m *vmm.Manager, name string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); m.VM(name) != nil; {
		if time.Now().After(deadline) {
			t.Fatalf("%s is still there", name)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestHold expects that a VM goes with its holder, unless it is protected.
func TestHold(t *testing.T) {
	m := open(t, t.TempDir(), newStore())
	v, err := m.CreateHeld(t.Context(), "web", vmm.Owner{UID: 7})
	if err != nil {
		t.Fatal(err)
	}
	do(t, v, vmm.Start, nil)
	if err := v.Hold(t.Context(), nil); !errors.Is(err, vmm.ErrBusy) {
		t.Errorf("a second holder: %v", err)
	}
	v.LetGo()
	if err := v.Hold(t.Context(), nil); !errors.Is(err, vmm.ErrBusy) &&
		!errors.Is(err, vmm.ErrNotFound) {
		t.Errorf("a holder of a VM that is being removed: %v", err)
	}
	gone(t, m, "web")

	v = create(t, m, "db", "")
	refuse := func(vmm.Owner) error { return vmm.ErrNotPermitted }
	if err := v.Hold(t.Context(), refuse); !errors.Is(err, vmm.ErrNotPermitted) {
		t.Errorf("a holder that may not: %v", err)
	}
	if err := v.Hold(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	do(t, v, vmm.Start, nil)
	configure(t, v, func(c *vmm.Config) { c.Protected = true })
	v.LetGo()
	until(t, v, "without a hold", func(s *vmm.Snapshot) bool { return !s.Held })
	if s := v.Snapshot(); s.State != vmm.Running || m.VM("db") == nil {
		t.Errorf("the protected VM is %s", s.State)
	}
}

// TestHoldersReturn expects that a new daemon waits for holders and removes VMs without one.
func TestHoldersReturn(t *testing.T) {
	was := *vmm.HolderWait
	*vmm.HolderWait = 300 * time.Millisecond
	defer func() { *vmm.HolderWait = was }()
	dir, store := t.TempDir(), newStore()
	m := open(t, dir, store)
	for _, name := range []string{"kept", "lost", "left"} {
		v, err := m.CreateHeld(t.Context(), name, vmm.Owner{})
		if err != nil {
			t.Fatal(err)
		}
		do(t, v, vmm.Start, nil)
	}
	free := create(t, m, "free", "")
	do(t, free, vmm.Start, nil)
	left := m.VM("left")
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	left.LetGo() // too late for this daemon

	m = open(t, dir, store)
	kept := m.VM("kept")
	if s := kept.Snapshot(); s.State != vmm.Running || !s.Held {
		t.Fatalf("kept is %s, held: %v", s.State, s.Held)
	}
	if err := kept.Hold(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	gone(t, m, "lost")
	gone(t, m, "left")
	if m.VM("kept") == nil || m.VM("free") == nil {
		t.Error("a VM with a holder, or without a hold, is gone")
	}
	kept.LetGo()
	gone(t, m, "kept")
}
