package vmm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"banger/vmm"
)

// only permits changes of the uid's VMs.
func only(uid uint32) vmm.Permit {
	return func(o vmm.Owner) error {
		if o.UID != uid {
			return vmm.ErrNotPermitted
		}
		return nil
	}
}

// The name may be another user's VM by the time of a removal.
func TestPermitIsAskedAboutTheOwnerOfNow(t *testing.T) {
	ctx := context.Background()
	m := open(t, t.TempDir(), newStore())
	for _, uid := range []uint32{1, 2} {
		if _, err := m.Create(ctx, "web", vmm.Owner{UID: uid}); err != nil {
			t.Fatal(err)
		}
		if uid == 1 {
			if err := m.Remove(ctx, "web", only(1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	v := m.VM("web")
	configure(t, v, func(c *vmm.Config) { c.Disk = 1 << 20 })
	for what, err := range map[string]error{
		"remove":   m.Remove(ctx, "web", only(1)),
		"rename":   m.Rename(ctx, "web", "www", only(1)),
		"snapshot": v.TakeSnapshot(ctx, "s", only(1)),
	} {
		if !errors.Is(err, vmm.ErrNotPermitted) {
			t.Errorf("%s of another's VM: %v", what, err)
		}
	}
	if err := v.TakeSnapshot(ctx, "s", only(2)); err != nil {
		t.Fatal(err)
	}
	if err := v.RemoveSnapshot(ctx, "s", only(1)); !errors.Is(err, vmm.ErrNotPermitted) {
		t.Error("removal of another's snapshot:", err)
	}
	if s := m.VM("web").Snapshot(); s.Owner.UID != 2 || len(s.Kept()) != 1 {
		t.Errorf("it is now %+v", s.Record)
	}
}

// A change of the owner is made of the owner that is there, not of the one that somebody has seen
// before.
func TestChownOfTheOwnerOfNow(t *testing.T) {
	ctx := context.Background()
	m := open(t, t.TempDir(), newStore())
	v := create(t, m, "web", "")
	var all sync.WaitGroup
	for _, change := range []func(*vmm.Owner){
		func(o *vmm.Owner) { o.UID = 7 }, func(o *vmm.Owner) { o.GID = 8 },
		func(o *vmm.Owner) { o.Mode = 0o700 },
	} {
		all.Add(1)
		go func() {
			defer all.Done()
			err := v.Chown(ctx, func(o vmm.Owner) (vmm.Owner, error) { change(&o); return o, nil })
			if err != nil {
				t.Error(err)
			}
		}()
	}
	all.Wait()
	if o := v.Snapshot().Owner; o != (vmm.Owner{UID: 7, GID: 8, Mode: 0o700}) {
		t.Errorf("owner %+v", o)
	}
}

// A removal is of the VM that has the name then, and so is a rename.
func TestRemoveAndRenameOfOneName(t *testing.T) {
	ctx := context.Background()
	m := open(t, t.TempDir(), newStore())
	for range 200 {
		create(t, m, "web", "")
		var renamed, removed error
		var both sync.WaitGroup
		both.Add(2)
		go func() { defer both.Done(); renamed = m.Rename(ctx, "web", "other", nil) }()
		go func() { defer both.Done(); removed = m.Remove(ctx, "web", nil) }()
		both.Wait()
		other := m.VM("other") != nil
		if other != (renamed == nil) || other == (removed == nil) || m.VM("web") != nil {
			t.Fatalf("rename: %v; remove: %v; other is %v", renamed, removed, m.VM("other"))
		}
		if renamed == nil {
			if err := m.Remove(ctx, "other", nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Callers of Remove and Rename hold a lock of the kernel that others wait for.
func TestRemoveDoesNotWait(t *testing.T) {
	ctx := context.Background()
	m := open(t, t.TempDir(), newStore())
	v := withDisk(t, m, "web", "fake.snapshot=5s")
	taken := make(chan error)
	go func() { taken <- v.TakeSnapshot(ctx, "s", nil) }()
	until(t, v, "taking a snapshot", func(s *vmm.Snapshot) bool { return len(s.Saved) == 1 })
	began := time.Now()
	for what, err := range map[string]error{
		"remove": m.Remove(ctx, "web", nil), "rename": m.Rename(ctx, "web", "www", nil),
	} {
		if !errors.Is(err, vmm.ErrBusy) {
			t.Errorf("%s during a snapshot: %v", what, err)
		}
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("both took %v", took)
	}
	if err := <-taken; err != nil {
		t.Error(err)
	}
}

// A removal returns before the disks are deleted, which takes long. The daemon's next start deletes
// what this one did not.
func TestRemoveDoesNotWaitForDisks(t *testing.T) {
	ctx, dir, store := context.Background(), t.TempDir(), newStore()
	m := open(t, dir, store)
	began, release := make(chan struct{}, 2), make(chan struct{})
	old := *vmm.RemoveAll
	*vmm.RemoveAll = func(context.Context, string) error {
		began <- struct{}{}
		<-release
		return errors.New("the disk is gone")
	}
	defer func() { *vmm.RemoveAll = old }()
	for range 2 {
		v := withDisk(t, m, "web", "")
		do(t, v, vmm.Start, nil)
		do(t, v, vmm.Kill, nil)
		if err := m.Remove(ctx, "web", nil); err != nil {
			t.Fatal(err)
		}
	}
	<-began
	select {
	case <-began:
		t.Error("two deletions run at once")
	default:
	}
	left := func(pattern string) int {
		names, _ := filepath.Glob(filepath.Join(dir, "vms", pattern)) // a star matches a dot
		return len(names)
	}
	if all, hidden := left("*"), left(".*"); all != 2 || hidden != 2 {
		t.Errorf("%d directories, %d of them hidden", all, hidden)
	}
	close(release)
	if err := m.Close(ctx); err != nil {
		t.Error(err)
	}
	// Nor does the next start wait, which deletes what is left.
	began, release = make(chan struct{}, 2), make(chan struct{})
	m = open(t, dir, store)
	<-began
	if all, hidden := left("*"), left(".*"); all != 2 || hidden != 2 {
		t.Errorf("after the start: %d directories, %d of them hidden", all, hidden)
	}
	close(release)
	if err := m.Close(ctx); err != nil {
		t.Error(err)
	}
	*vmm.RemoveAll = old
	open(t, dir, store)
	emptied(t, filepath.Join(dir, "vms"))
}

// A deletion under way delays the daemon's end by a second at most and makes no error of it, even
// if the disk never answers. The next start deletes the rest.
func TestDeletionsLeaveTheEndAlone(t *testing.T) {
	old := *vmm.RemoveAll
	defer func() { *vmm.RemoveAll = old }()
	release := make(chan struct{})
	defer close(release)
	for what, wait := range map[string]func(context.Context) error{
		"in steps":   func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"that hangs": func(context.Context) error { <-release; return nil },
	} {
		ctx, dir, store := context.Background(), t.TempDir(), newStore()
		m := open(t, dir, store)
		began := make(chan struct{}, 1)
		*vmm.RemoveAll = func(ctx context.Context, _ string) error {
			began <- struct{}{}
			return wait(ctx)
		}
		for _, name := range []string{"web", "db"} { // the second waits for the first
			v := withDisk(t, m, name, "")
			do(t, v, vmm.Start, nil)
			do(t, v, vmm.Kill, nil)
			if err := m.Remove(ctx, name, nil); err != nil {
				t.Fatal(err)
			}
		}
		<-began
		at := time.Now()
		if err := m.Close(ctx); err != nil || time.Since(at) > 4*time.Second {
			t.Errorf("with a deletion %s, the end returned %v after %v", what, err, time.Since(at))
		}
		if left, _ := os.ReadDir(filepath.Join(dir, "vms")); len(left) != 2 {
			t.Errorf("%d directories are left to the next start, want 2", len(left))
		}
		*vmm.RemoveAll = old
		open(t, dir, store)
		emptied(t, filepath.Join(dir, "vms"))
	}
}

// emptied fails unless all in a directory is deleted, in the background.
func emptied(t *testing.T, dir string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		left, err := os.ReadDir(dir)
		if err == nil && len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d directories are left, %v", len(left), err)
		}
	}
}
