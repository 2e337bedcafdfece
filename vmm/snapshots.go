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
	// maxSnapshots bounds the snapshots of a VM: each makes removing others slower.
	maxSnapshots = 256
	// resetWord, written to `restore`, empties the system disk. It is the name of no snapshot.
	resetWord = "reset"

	snapshotWait = time.Minute     // bounds the VMM's work on a snapshot
	freezeWait   = 2 * time.Second // bounds the agent's freeze of the guest's file systems
	frozenMost   = 5 * time.Second // after which the agent thaws them by itself
	thawWait     = 2 * time.Second
	tidyWait     = 5 * time.Minute // bounds qemu-img's work on disks
)

// SnapshotPhase says how far a snapshot is made or removed, also after a crash.
type SnapshotPhase string

const (
	SnapshotMaking    SnapshotPhase = "making"   // it is in some disks: a crash's is removed
	SnapshotKept      SnapshotPhase = "kept"     // it is in all disks
	SnapshotRemoving  SnapshotPhase = "removing" // it is in some disks
	SnapshotRestoring SnapshotPhase = "restoring"
)

// DiskSnapshot is one snapshot of a VM's disks. It is a plain value.
type DiskSnapshot struct {
	Serial  uint64 // the VM's
	Number  uint16 // among the VM's, from 1; the store chooses it
	Name    string
	Created time.Time
	State   State // in which it was taken
	Size    int64 // bytes that the disks took on the host then
	Frozen  bool  // the guest's file systems stood still
	Phase   SnapshotPhase
}

// tag returns the snapshot's name in the disks.
func (d *DiskSnapshot) tag() string { return "banger-" + strconv.Itoa(int(d.Number)) }

func (d *DiskSnapshot) kept() bool {
	return d.Phase == SnapshotKept || d.Phase == SnapshotRestoring
}

// Kept returns the complete snapshots, oldest first.
func (s *Snapshot) Kept() []DiskSnapshot {
	return slices.DeleteFunc(slices.Clone(s.Saved), func(d DiskSnapshot) bool { return !d.kept() })
}

// saved returns a copy of the snapshot of that name, nil if there is none.
func (s *Snapshot) saved(name string) *DiskSnapshot {
	for _, d := range s.Saved {
		if d.Name == name && d.kept() {
			return &d
		}
	}
	return nil
}

// untidy reports whether a crash or an error has interrupted a change of snapshots.
func (s *Snapshot) untidy() bool {
	changing := func(d DiskSnapshot) bool { return d.Phase != SnapshotKept }
	return slices.ContainsFunc(s.Saved, changing)
}

// TakeSnapshot takes a snapshot of all disks, whatever the VM's state. It returns when the snapshot
// is durable; the work goes on if ctx ends first. ErrInvalid, ErrNameTooLong, ErrExists,
// ErrNoSpace, ErrBusy during a transition, ErrUnsupported for a VM without a disk.
func (v *VM) TakeSnapshot(ctx context.Context, name string, may Permit) error {
	doing := fmt.Sprintf("cannot take the snapshot %.63s of %s", name, v.Snapshot().Name)
	if err := CheckName(name); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if name == resetWord {
		return fmt.Errorf("%s: the word %s written to restore empties the system disk: %w",
			doing, resetWord, ErrInvalid)
	}
	return v.during(ctx, Take, doing, func(ctx context.Context) error {
		if err := may.ask(v.Snapshot().Owner); err != nil {
			return err
		}
		return v.takeSnapshot(ctx, name)
	})
}

// RemoveSnapshot removes a snapshot, whatever the VM's state. It returns when the snapshot is gone.
// What cannot be removed of it from the disks goes before their next use, as after a crash.
// ErrNotFound, ErrBusy during a transition.
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
		// From here on there is no such snapshot, whatever becomes of what it left in the disks.
		if err := v.tidy(ctx); err != nil {
			v.logf("cannot remove what is left of the snapshot %s: %v", name, err)
		}
		return nil
	})
}

// Restore makes the disks what they were at a snapshot. The word `reset` removes the overlay, so
// that the next start begins with the image as it is. ErrNotFound, ErrBusy unless stopped or
// failed.
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
			return fmt.Errorf("it has no such snapshot; `ls snapshots` lists its snapshots: %w",
				ErrNotFound)
		}
		if err := v.tidy(ctx); err != nil {
			return err
		}
		// From here on the disks may be a mix. tidy ends the restore before any start.
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

// keep records and publishes a changed snapshot.
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
	v.m.ledger.settleSaved(&v.charge, v.Snapshot().savedBytes())
}

func (v *VM) takeSnapshot(ctx context.Context, name string) error {
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
	d := &DiskSnapshot{Serial: v.serial, Name: name, Created: time.Now(), State: s.State,
		Size: diskBytes(s.Dir), Phase: SnapshotMaking}
	h, err := v.m.ledger.claimSaved(&v.charge, d.Size)
	if err != nil {
		return err
	}
	defer v.m.ledger.drop(h)
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
		// If this fails too, the next work on the disks removes the rest first.
		if e := v.tidy(ctx); e != nil {
			v.logf("cannot remove what is left of the snapshot %s: %v", name, e)
		}
		return err
	}
	v.logf("snapshot %s", name)
	v.emit(EventSnapshot, "take "+name)
	return nil
}

// frozen runs f while the guest's file systems are frozen, if its agent can do that. It reports
// whether they were frozen until the end. The agent thaws them by itself after frozenMost.
func (v *VM) frozen(ctx context.Context, s *Snapshot, f func() error) (bool, error) {
	var freezer guest.Freezer
	if s.State == Running && s.Ready {
		freezer, _ = s.Agent().(guest.Freezer)
	}
	if freezer == nil {
		return false, f()
	}
	asked, cancel := context.WithTimeout(ctx, freezeWait)
	_, err := freezer.Freeze(asked, frozenMost)
	cancel()
	if err != nil {
		v.logf("the guest's file systems are not frozen for the snapshot: %v", err)
	}
	failure := f()
	// Also after an error, and when ctx has ended: the agent may have frozen some, or be about to.
	asked, cancel = context.WithTimeout(context.WithoutCancel(ctx), thawWait)
	defer cancel()
	still, thawErr := freezer.Thaw(asked)
	if thawErr != nil && err == nil {
		v.logf("the agent did not confirm that it thawed the file systems; "+
			"it does so by itself: %v", thawErr)
	}
	v.clockDue(false)
	return err == nil && thawErr == nil && still, failure
}

// snapshotter returns the Snapshotter for the VM's state. It makes the disks of a stopped VM first.
func (v *VM) snapshotter(ctx context.Context) (Snapshotter, error) {
	s := v.Snapshot()
	spec, driver, err := v.diskSpec()
	if err != nil {
		return nil, err
	}
	if len(spec.Disks) == 0 {
		return nil, fmt.Errorf("it has no disk; its file `disk` gives it one: %w", ErrUnsupported)
	}
	if !s.State.Alive() {
		if err := v.makeDisks(ctx, spec, driver); err != nil {
			return nil, err
		}
	}
	return s.disks(spec, driver)
}

// disks returns the Snapshotter for the VM's state, whose disks exist.
func (s *Snapshot) disks(spec *Spec, driver Driver) (Snapshotter, error) {
	if !s.State.Alive() {
		return driver.Disks(spec), nil
	}
	if s.Machine == nil {
		return nil, errNotRecovered
	}
	return s.Machine, nil
}

// errNotRecovered refuses what needs the machine that an earlier daemon has started.
var errNotRecovered = fmt.Errorf("its VMM is not recovered yet: %w", ErrBusy)

// tidy ends the changes of snapshots that a crash or an error has interrupted: it removes half made
// snapshots and repeats a restore. All other work on the disks comes after it.
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
	disks, err := s.disks(spec, driver)
	if err != nil {
		return err
	}
	for _, d := range s.Saved {
		switch {
		case d.Phase == SnapshotKept || d.Phase == SnapshotRestoring && s.State.Alive():
		case d.Phase == SnapshotRestoring:
			err := driver.RestoreDisks(ctx, spec, d.tag())
			if err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
			d.Phase = SnapshotKept // after ErrNotFound nothing was changed
			if e := v.keep(ctx, &d); e != nil || err != nil {
				return errors.Join(err, e)
			}
		default:
			if err := disks.DropSnapshot(ctx, d.tag()); err != nil {
				return err
			}
			err := v.m.o.Store.DeleteSnapshot(ctx, &d)
			if err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
			same := func(other DiskSnapshot) bool { return other.Number == d.Number }
			v.showSaved(func(all []DiskSnapshot) []DiskSnapshot {
				return slices.DeleteFunc(all, same)
			})
		}
	}
	return nil
}

// tidyUp runs tidy in the background, after a crash of the last daemon.
func (v *VM) tidyUp() {
	if !v.Snapshot().untidy() {
		return
	}
	v.m.spawn(func() {
		err := v.during(v.m.ctx, Drop, "cannot finish a change of its snapshots", v.tidy)
		if err != nil && v.m.ctx.Err() == nil {
			v.m.o.Log.Error("the disks of a VM are tidied at its next start only",
				"vm", v.Snapshot().Name, "err", err)
		}
	})
}

// reset removes the overlay. The VM must have no snapshots, which the overlay contains.
func (v *VM) reset(ctx context.Context) error {
	if err := v.tidy(ctx); err != nil {
		return err
	}
	s := v.Snapshot()
	if len(s.Saved) > 0 {
		return fmt.Errorf("its snapshots would be lost: remove them first: %w", ErrBusy)
	}
	err := os.Remove(DiskPath(s.Dir, DiskOverlay))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	v.emit(EventSnapshot, resetWord)
	return v.update(ctx, func(d *draft) error { d.Base = ""; return nil })
}
