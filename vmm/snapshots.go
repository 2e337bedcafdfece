package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"banger/vmm/guest"
)

const (
	// maxSnapshots is how many a VM may have: each makes removing others slower.
	maxSnapshots = 256
	// resetWord is what `restore` takes to empty the system disk, and so the name of no snapshot.
	resetWord = "reset"

	snapshotWait = time.Minute     // for the VMM to take or drop a snapshot
	freezeWait   = 2 * time.Second // for the agent to hold the guest's file systems
	frozenMost   = 5 * time.Second // the agent lets them go by itself
	thawWait     = 2 * time.Second
	tidyWait     = 5 * time.Minute // for qemu-img to make, drop or restore
)

// SnapshotPhase is how far a snapshot is made or removed; what is in the disks is told by it also after a crash.
type SnapshotPhase string

const (
	SnapshotMaking    SnapshotPhase = "making"   // it may be in some of the disks, and is to be removed
	SnapshotKept      SnapshotPhase = "kept"     // it is in all of them
	SnapshotRemoving  SnapshotPhase = "removing" // as SnapshotMaking
	SnapshotRestoring SnapshotPhase = "restoring"
)

// DiskSnapshot is one snapshot of a VM's disks. It is a plain value.
type DiskSnapshot struct {
	Serial  uint64 // the VM's
	Number  uint16 // among the VM's, from 1; given by the store
	Name    string
	Created time.Time
	State   State // in which it was taken
	Size    int64 // bytes that the disks took on the host then
	Frozen  bool  // the guest's file systems stood still
	Phase   SnapshotPhase
}

// tag is its name in the disks.
func (d *DiskSnapshot) tag() string { return "banger-" + strconv.Itoa(int(d.Number)) }

func (d *DiskSnapshot) kept() bool { return d.Phase == SnapshotKept || d.Phase == SnapshotRestoring }

// Kept are the snapshots that are there, oldest first.
func (s *Snapshot) Kept() []DiskSnapshot {
	return slices.DeleteFunc(slices.Clone(s.Saved), func(d DiskSnapshot) bool { return !d.kept() })
}

// saved gives the snapshot of that name, nil if it is not there.
func (s *Snapshot) saved(name string) *DiskSnapshot {
	i := slices.IndexFunc(s.Saved, func(d DiskSnapshot) bool { return d.Name == name && d.kept() })
	if i < 0 {
		return nil
	}
	d := s.Saved[i]
	return &d
}

// untidy reports whether something is left of snapshots that a crash or an error cut short.
func (s *Snapshot) untidy() bool {
	return slices.ContainsFunc(s.Saved, func(d DiskSnapshot) bool { return d.Phase != SnapshotKept })
}

// TakeSnapshot takes a snapshot of all disks, in the state in which the VM is. It returns when it is durable; when ctx ends first it
// goes on. ErrInvalid, ErrNameTooLong, ErrExists, ErrBusy during a transition, ErrUnsupported for a VM without a disk, ErrNoSpace.
func (v *VM) TakeSnapshot(ctx context.Context, name string, may Permit) error {
	doing := fmt.Sprintf("cannot take the snapshot %.63s of %s", name, v.Snapshot().Name)
	if err := CheckName(name); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if name == resetWord {
		return fmt.Errorf("%s: the word %s written to restore empties the system disk: %w", doing, resetWord, ErrInvalid)
	}
	return v.during(ctx, Take, doing, func(ctx context.Context) error {
		if err := may.ask(v.Snapshot().Owner); err != nil {
			return err
		}
		return v.take(ctx, name)
	})
}

// RemoveSnapshot removes a snapshot, whatever the VM does. ErrNotFound, ErrBusy during a transition.
func (v *VM) RemoveSnapshot(ctx context.Context, name string, may Permit) error {
	doing := fmt.Sprintf("cannot remove the snapshot %.63s of %s", name, v.Snapshot().Name)
	return v.during(ctx, Drop, doing, func(ctx context.Context) error {
		if err := may.ask(v.Snapshot().Owner); err != nil {
			return err
		}
		d := v.Snapshot().saved(name)
		if d == nil {
			return ErrNotFound
		}
		d.Phase = SnapshotRemoving
		if err := v.keep(ctx, d); err != nil {
			return err
		}
		v.emit(EventSnapshot, "remove "+name)
		return v.tidy(ctx)
	})
}

// Restore puts the disks back to what they were at a snapshot; the word `reset` removes the overlay, so that the next start
// begins with the image as it is. ErrNotFound, ErrBusy unless stopped or failed.
func (v *VM) Restore(ctx context.Context, name string) error {
	doing := fmt.Sprintf("cannot restore %s to %.63q", v.Snapshot().Name, name)
	return v.during(ctx, Restore, doing, func(ctx context.Context) error {
		s := v.Snapshot()
		if err := s.checkDown(); err != nil {
			return err
		}
		if name == resetWord {
			return v.reset(ctx)
		}
		d := s.saved(name)
		if d == nil {
			return fmt.Errorf("it has no such snapshot; `ls snapshots` shows those that it has: %w", ErrNotFound)
		}
		if err := v.tidy(ctx); err != nil {
			return err
		}
		// From here on the disks may be a mix, which no start may see: see tidy.
		d.Phase = SnapshotRestoring
		if err := v.keep(ctx, d); err != nil {
			return err
		}
		if err := v.tidy(ctx); err != nil {
			return err
		}
		v.emit(EventSnapshot, "restore "+name)
		return nil
	})
}

// keep records a snapshot and shows it.
func (v *VM) keep(ctx context.Context, d *DiskSnapshot) error {
	if err := v.m.o.Store.UpdateSnapshot(context.WithoutCancel(ctx), d); err != nil {
		return err
	}
	v.showSaved(func(all []DiskSnapshot) []DiskSnapshot {
		for i := range all {
			if all[i].Number == d.Number {
				all[i] = *d
			}
		}
		return all
	})
	return nil
}

// showSaved publishes a changed copy of the snapshots.
func (v *VM) showSaved(change func([]DiskSnapshot) []DiskSnapshot) {
	v.publish(func(s *Snapshot) {
		s.Saved = change(slices.Clone(s.Saved))
		s.Changed = s.Changed.with(time.Now(), "snapshots")
	})
}

func (v *VM) take(ctx context.Context, name string) error {
	if err := v.tidy(ctx); err != nil {
		return err
	}
	s := v.Snapshot()
	if s.saved(name) != nil {
		return ErrExists
	}
	if len(s.Saved) >= maxSnapshots {
		return fmt.Errorf("it has %d: remove one first: %w", maxSnapshots, ErrNoSpace)
	}
	disks, err := v.snapshotter(ctx)
	if err != nil {
		return err
	}
	d := &DiskSnapshot{Serial: v.serial, Name: name, Created: time.Now(), State: s.State, Size: diskBytes(s.Dir), Phase: SnapshotMaking}
	if err := v.m.o.Store.AddSnapshot(context.WithoutCancel(ctx), d); err != nil {
		return err
	}
	v.showSaved(func(all []DiskSnapshot) []DiskSnapshot { return append(all, *d) })
	d.Frozen, err = v.frozen(ctx, s, func() error {
		ctx, cancel := context.WithTimeout(ctx, snapshotWait)
		defer cancel()
		return disks.TakeSnapshot(ctx, d.tag())
	})
	if err == nil {
		d.Phase = SnapshotKept
		err = v.keep(ctx, d)
	}
	if err != nil {
		// What is left of it goes now or, if that fails too, before anything else is done with the disks.
		if e := v.tidy(ctx); e != nil {
			v.logf("cannot remove what is left of the snapshot %s: %v", name, e)
		}
		return err
	}
	v.logf("snapshot %s", name)
	v.emit(EventSnapshot, "take "+name)
	return nil
}

// frozen runs f while the guest's file systems stand still, if its agent can do that, and reports whether they did until the end.
// A guest is never left so: the agent lets go by itself after frozenMost.
func (v *VM) frozen(ctx context.Context, s *Snapshot, f func() error) (bool, error) {
	var freezer guest.Freezer
	if g, ok := s.Machine.(Guester); ok && s.State == Running && s.Ready {
		freezer, _ = g.Guest().(guest.Freezer)
	}
	if freezer == nil {
		return false, f()
	}
	asked, cancel := context.WithTimeout(ctx, freezeWait)
	_, err := freezer.Freeze(asked, frozenMost)
	cancel()
	if err != nil {
		v.logf("the guest's file systems do not stand still for the snapshot: %v", err)
	}
	failure := f()
	// Also after an error and for who gave up: the agent may have frozen some, or be about to.
	asked, cancel = context.WithTimeout(context.WithoutCancel(ctx), thawWait)
	defer cancel()
	held, thawed := freezer.Thaw(asked)
	if thawed != nil && err == nil {
		v.logf("the agent did not answer that it let the file systems go; it does so by itself: %v", thawed)
	}
	return err == nil && thawed == nil && held, failure
}

// snapshotter gives what takes snapshots of the VM's disks as it is now. A stopped VM's disks are made before.
func (v *VM) snapshotter(ctx context.Context) (Snapshotter, error) {
	s := v.Snapshot()
	spec, driver, err := v.diskSpec()
	if err != nil {
		return nil, err
	}
	if len(spec.Disks) == 0 {
		return nil, fmt.Errorf("it has no disk; its file `disk` gives it one: %w", ErrUnsupported)
	}
	switch {
	case s.State.Alive():
		disks, ok := s.Machine.(Snapshotter)
		if !ok {
			return nil, ErrUnsupported
		}
		return disks, nil
	case driver == nil:
		return nil, ErrUnsupported
	}
	if err := v.makeDisks(ctx, spec, driver); err != nil {
		return nil, err
	}
	return driver.Disks(spec), nil
}

// tidy removes from the disks what is left of snapshots half made or half removed, and ends a restore that was begun. Until then
// nothing else is done with the disks.
func (v *VM) tidy(ctx context.Context) error {
	s := v.Snapshot()
	if !s.untidy() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyWait)
	defer cancel()
	spec, driver, err := v.diskSpec()
	if err != nil {
		return err
	}
	var disks Snapshotter
	if s.State.Alive() {
		disks, _ = s.Machine.(Snapshotter)
	} else if driver != nil {
		disks = driver.Disks(spec)
	}
	for _, d := range s.Saved {
		switch {
		case d.Phase == SnapshotKept || d.Phase == SnapshotRestoring && s.State.Alive():
		case disks == nil:
			return ErrUnsupported
		case d.Phase == SnapshotRestoring:
			err := driver.RestoreDisks(ctx, spec, d.tag())
			if err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
			d.Phase = SnapshotKept // without it in any disk nothing was changed
			if e := v.keep(ctx, &d); e != nil || err != nil {
				return errors.Join(err, e)
			}
		default:
			if err := disks.DropSnapshot(ctx, d.tag()); err != nil {
				return err
			}
			if err := v.m.o.Store.DeleteSnapshot(ctx, &d); err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
			v.showSaved(func(all []DiskSnapshot) []DiskSnapshot {
				return slices.DeleteFunc(all, func(x DiskSnapshot) bool { return x.Number == d.Number })
			})
		}
	}
	return nil
}

// tidyUp is tidy in the background, for what a daemon before this one left.
func (v *VM) tidyUp() {
	if !v.Snapshot().untidy() {
		return
	}
	v.m.spawn(func() {
		err := v.during(v.m.ctx, Drop, "cannot finish a change of its snapshots", v.tidy)
		if err != nil && v.m.ctx.Err() == nil {
			v.m.o.Log.Error("the disks of a VM need a second try, at its next start", "vm", v.Snapshot().Name, "err", err)
		}
	})
}

// reset removes the overlay. Its snapshots would go with it, so it must have none.
func (v *VM) reset(ctx context.Context) error {
	if err := v.tidy(ctx); err != nil {
		return err
	}
	s := v.Snapshot()
	if len(s.Saved) > 0 {
		return fmt.Errorf("its snapshots would be lost: remove them first: %w", ErrBusy)
	}
	if err := os.Remove(DiskPath(s.Dir, DiskOverlay)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	v.emit(EventSnapshot, resetWord)
	return v.update(ctx, func(d *draft) error { d.Base = ""; return nil })
}
