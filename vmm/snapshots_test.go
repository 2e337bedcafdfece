package vmm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/vmm"
)

// withDisk makes a VM with a disk and a script of the fake driver.
func withDisk(t *testing.T, m *vmm.Manager, name, script string) *vmm.VM {
	t.Helper()
	v := create(t, m, name, script)
	configure(t, v, func(c *vmm.Config) { c.Disk = 1 << 20 })
	return v
}

func work(v *vmm.VM) string { return vmm.DiskPath(v.Snapshot().Dir, vmm.DiskWork) }

// put overwrites the beginning of the disk, get reads it.
func put(t *testing.T, v *vmm.VM, text string) {
	t.Helper()
	f, err := os.OpenFile(work(v), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, v *vmm.VM, n int) string {
	t.Helper()
	b, err := os.ReadFile(work(v))
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// snapshots returns the names, and how many snapshots are in the disk.
func snapshots(v *vmm.VM) (string, int) {
	var names []string
	for _, d := range v.Snapshot().Kept() {
		names = append(names, d.Name)
	}
	dirs, _ := filepath.Glob(vmm.DiskPath(v.Snapshot().Dir, "snapshot-*"))
	return strings.Join(names, " "), len(dirs)
}

func ready(t *testing.T, v *vmm.VM) {
	t.Helper()
	until(t, v, "ready", func(s *vmm.Snapshot) bool { return s.Ready })
}

func TestSnapshotLife(t *testing.T) {
	ctx := context.Background()
	m := open(t, t.TempDir(), newStore())
	v := withDisk(t, m, "web", "")
	if err := v.TakeSnapshot(ctx, "empty", nil); err != nil { // which makes its disks
		t.Fatal(err)
	}
	do(t, v, vmm.Start, nil)
	ready(t, v)
	put(t, v, "one")
	if err := v.TakeSnapshot(ctx, "one", nil); err != nil {
		t.Fatal(err)
	}
	put(t, v, "two")
	if err := v.Restore(ctx, "one"); !errors.Is(err, vmm.ErrBusy) || get(t, v, 3) != "two" {
		t.Errorf("restore of a running VM: %v", err)
	}
	do(t, v, vmm.Pause, nil)
	if err := v.TakeSnapshot(ctx, "paused", nil); err != nil {
		t.Fatal(err)
	}
	do(t, v, vmm.Kill, nil)
	const zeros = "\x00\x00\x00"
	for name, want := range map[string]string{"one": "one", "empty": zeros, "paused": "two"} {
		if err := v.Restore(ctx, name); err != nil || get(t, v, 3) != want {
			t.Errorf("%s: %q, %v", name, get(t, v, 3), err)
		}
	}
	for i, d := range v.Snapshot().Kept() {
		want := []struct {
			state  vmm.State
			frozen bool
		}{{vmm.Stopped, false}, {vmm.Running, true}, {vmm.Paused, false}}[i]
		if d.State != want.state || d.Frozen != want.frozen || d.Created.IsZero() {
			t.Errorf("%+v", d)
		}
	}
	for name, want := range map[string]error{
		"one": vmm.ErrExists, "Big": vmm.ErrInvalid, "reset": vmm.ErrInvalid,
		strings.Repeat("x", 64): vmm.ErrNameTooLong,
	} {
		if err := v.TakeSnapshot(ctx, name, nil); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := v.RemoveSnapshot(ctx, "none", nil); !errors.Is(err, vmm.ErrNotFound) {
		t.Errorf("removal of none: %v", err)
	}
	if err := v.Restore(ctx, "none"); !errors.Is(err, vmm.ErrNotFound) {
		t.Errorf("restore of none: %v", err)
	}
	if err := v.RemoveSnapshot(ctx, "one", nil); err != nil {
		t.Error(err)
	}
	if names, dirs := snapshots(v); names != "empty paused" || dirs != 2 {
		t.Errorf("%s, %d in the disk", names, dirs)
	}
	bare, err := m.Create(ctx, "bare", vmm.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	if err := bare.TakeSnapshot(ctx, "one", nil); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("of a VM without a disk: %v", err)
	}
}

func TestSnapshotThatFailsLeavesNothing(t *testing.T) {
	ctx := context.Background()
	v := withDisk(t, open(t, t.TempDir(), newStore()), "web", "fake.snapshot=fail")
	for _, start := range []bool{false, true} {
		if start {
			do(t, v, vmm.Start, nil)
		}
		if err := v.TakeSnapshot(ctx, "one", nil); err == nil {
			t.Fatal("it is taken")
		}
		if names, dirs := snapshots(v); names != "" || dirs != 0 || len(v.Snapshot().Saved) != 0 {
			t.Errorf("left: %q, %d in the disk", names, dirs)
		}
	}
}

// A guest whose agent does not answer delays its snapshot and no more.
func TestSnapshotOfGuestThatDoesNotFreeze(t *testing.T) {
	v := withDisk(t, open(t, t.TempDir(), newStore()), "web", "fake.freeze=hang")
	do(t, v, vmm.Start, nil)
	ready(t, v)
	if err := v.TakeSnapshot(context.Background(), "one", nil); err != nil {
		t.Fatal(err)
	}
	if d := v.Snapshot().Kept()[0]; d.Frozen {
		t.Error("the snapshot says that the guest was frozen")
	}
}

// Commands during a snapshot wait for it, and a kill does not.
func TestCommandsDuringSnapshot(t *testing.T) {
	ctx := context.Background()
	v := withDisk(t, open(t, t.TempDir(), newStore()), "web", "fake.snapshot=300ms")
	do(t, v, vmm.Start, nil)
	taken := make(chan error, 1)
	go func() { taken <- v.TakeSnapshot(ctx, "one", nil) }()
	until(t, v, "taking one", func(s *vmm.Snapshot) bool { return len(s.Saved) == 1 })
	if len(v.Snapshot().Kept()) != 0 {
		t.Error("it is shown half made")
	}
	do(t, v, vmm.Stop, nil)
	if err := <-taken; err != nil || len(v.Snapshot().Kept()) != 1 {
		t.Errorf("the stop did not wait: %v", err)
	}
	do(t, v, vmm.Start, nil)
	go func() { taken <- v.TakeSnapshot(ctx, "two", nil) }()
	until(t, v, "taking two", func(s *vmm.Snapshot) bool { return len(s.Saved) == 2 })
	do(t, v, vmm.Kill, nil)
	if err := <-taken; !errors.Is(err, context.Canceled) {
		t.Errorf("the snapshot of a VM that was killed: %v", err)
	}
	if names, dirs := snapshots(v); names != "one" || dirs != 1 {
		t.Errorf("%q, %d in the disk", names, dirs)
	}
}

// Changes of snapshots that a crash has interrupted are undone or ended by the next daemon before
// any other work on the disks.
func TestSnapshotsAfterCrash(t *testing.T) {
	ctx := context.Background()
	dir, store := t.TempDir(), newStore()
	m := open(t, dir, store)
	v := withDisk(t, m, "web", "")
	for _, name := range []string{"one", "two"} {
		if err := v.TakeSnapshot(ctx, name, nil); err != nil {
			t.Fatal(err)
		}
		put(t, v, name)
	}
	m.Close(ctx)
	store.saved[0].Phase = vmm.SnapshotRestoring
	store.saved[1].Phase = vmm.SnapshotRemoving
	v = open(t, dir, store).VM("web")
	if names, _ := snapshots(v); names != "one" {
		t.Errorf("shown: %s", names)
	}
	do(t, v, vmm.Start, nil)
	if names, dirs := snapshots(v); names != "one" || dirs != 1 || get(t, v, 3) != "\x00\x00\x00" {
		t.Errorf("%s, %d in the disk, which has %q", names, dirs, get(t, v, 3))
	}
}

func TestDiskGrowsWhileItRuns(t *testing.T) {
	ctx := context.Background()
	m := open(t, t.TempDir(), newStore())
	v := withDisk(t, m, "web", "")
	do(t, v, vmm.Start, nil)
	resize := func(v *vmm.VM, to int64) error {
		return v.Configure(ctx, func(c *vmm.Config) error { c.Disk = to; return nil })
	}
	if err := resize(v, 2<<20); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(work(v)); err != nil || info.Size() != 2<<20 {
		t.Errorf("%v, %v", info, err)
	}
	if err := resize(v, 1<<20); !errors.Is(err, vmm.ErrInvalid) {
		t.Errorf("it shrinks: %v", err)
	}
	bare, err := m.Create(ctx, "bare", vmm.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	do(t, bare, vmm.Start, nil)
	if err := resize(bare, 1<<20); !errors.Is(err, vmm.ErrBusy) {
		t.Errorf("a disk comes to a running VM: %v", err)
	}
}

// A disk that finds no space pauses the VM, which resumes when there is some.
func TestFullDiskPauses(t *testing.T) {
	m := open(t, t.TempDir(), newStore())
	v := withDisk(t, m, "web", "fake.full=10ms")
	do(t, v, vmm.Start, nil)
	await(t, v, vmm.Paused)
	if s := v.Snapshot(); !strings.Contains(s.Error, "no space left on the host for its disk work") {
		t.Errorf("error %q", s.Error)
	}
	await(t, v, vmm.Running)
	if s := v.Snapshot(); s.Error != "" {
		t.Errorf("error %q", s.Error)
	}
}
