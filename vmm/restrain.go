package vmm

import (
	"context"
	"errors"
	"fmt"
)

// apply puts in force for the VM's machine what s changes. The caller holds the VM's turn. After
// an error the limits of before are in force.
func (v *VM) apply(ctx context.Context, before, s *Snapshot) error {
	if s.Config.Disk != before.Config.Disk && !s.State.Down() {
		if err := growDisk(ctx, s); err != nil {
			return fmt.Errorf("cannot grow the disk of %s: %w", s.Name, err)
		}
	}
	// The driver bounds the time; half of the limits would be wrong.
	if err := v.restrain(context.WithoutCancel(ctx), before, s); err != nil {
		return fmt.Errorf("cannot configure %s: %w", s.Name, err)
	}
	return nil
}

// restrain puts the limits and the target of s in force for its machine, in place of those of
// before. The caller holds the VM's turn. After an error those of before are in force.
func (v *VM) restrain(ctx context.Context, before, s *Snapshot) error {
	if s.Machine == nil {
		return nil // its start does it
	}
	err := v.limit(ctx, s)
	if err != nil || s.Config.MemoryTarget == before.Config.MemoryTarget {
		return err
	}
	if err = v.inflate(ctx, s); err != nil {
		err = errors.Join(err, v.limit(ctx, before))
	}
	return err
}

// limit puts the limits of s in force for its machine.
func (v *VM) limit(ctx context.Context, s *Snapshot) error {
	err := s.Machine.Limit(ctx, &s.Config.Limits)
	if err == nil || errors.Is(err, ErrNotRunning) { // a machine that has just ended takes nothing
		return nil
	}
	return fmt.Errorf("cannot limit it: %w", err)
}

// inflate puts the target of s in force for the memory of its guest. A guest that boots may need all
// of its memory: ballooned does it once the agent has answered. The caller holds the VM's turn.
func (v *VM) inflate(ctx context.Context, s *Snapshot) error {
	if s.Config.MemoryTarget != 0 && s.Machine.Guest() != nil && s.Machine != v.booted {
		return nil
	}
	err := s.Machine.Balloon(ctx, s.Config.MemoryTarget)
	if err == nil || errors.Is(err, ErrNotRunning) {
		return nil
	}
	return fmt.Errorf("cannot set the target of its memory: %w", err)
}

// regain puts in force what the record of an adopted VM has. The daemon before may have died
// between a change and its record.
func (v *VM) regain(ctx context.Context) error {
	s := v.Snapshot()
	err := v.limit(ctx, s)
	if e := v.inflate(ctx, s); !errors.Is(e, ErrUnsupported) || s.Config.MemoryTarget != 0 {
		err = errors.Join(err, e)
	}
	if err != nil {
		v.m.o.Log.Error("a VM was adopted without all of its limits", "vm", s.Name, "err", err)
		v.logf("%v", err)
	}
	return err
}

// ballooned sets the target of a guest whose agent has answered.
func (v *VM) ballooned(ctx context.Context, machine Machine) error {
	t, err := v.acquire(ctx)
	if err != nil {
		return err
	}
	defer t.release()
	s := v.Snapshot()
	if s.Machine != machine {
		return nil
	}
	if v.booted = machine; s.Config.MemoryTarget == 0 {
		return nil
	}
	return v.inflate(ctx, s)
}
