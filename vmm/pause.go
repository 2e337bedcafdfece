package vmm

import (
	"context"
	"fmt"
)

func (v *VM) pause(ctx context.Context) error {
	return v.halt(ctx, Paused, func(p Pauser) error { return p.Pause(ctx) })
}

func (v *VM) resume(ctx context.Context) error {
	return v.halt(ctx, Running, func(p Pauser) error { return p.Resume(ctx) })
}

func (v *VM) halt(ctx context.Context, to State, do func(Pauser) error) error {
	s := v.Snapshot()
	p, ok := s.Machine.(Pauser)
	if !ok {
		return fmt.Errorf("%s cannot be paused: %w", s.Name, ErrUnsupported)
	}
	if err := do(p); err != nil {
		return fmt.Errorf("cannot make %s %s: %w", s.Name, to, err)
	}
	return v.enter(to, func(d *draft) { d.fail("") })
}

// isPaused reports whether the CPUs of a machine are stopped.
func isPaused(machine Machine) bool {
	p, ok := machine.(interface{ Paused() bool })
	return ok && p.Paused()
}

// halted records that the VMM stopped the CPUs by itself.
func (v *VM) halted(why error) {
	err := v.after(Pause, func(state State) (work, error) {
		if state != Running || !isPaused(v.Snapshot().Machine) {
			return nil, nil // it ended, or its CPUs run again
		}
		return func(context.Context) error {
			if err := v.enter(Paused, func(d *draft) { d.fail(why.Error()) }); err != nil {
				return err
			}
			v.emit(EventError, why.Error())
			return nil
		}, nil
	})
	if err != nil && v.m.ctx.Err() == nil {
		v.m.o.Log.Error("cannot record that a VM was paused", "vm", v.Snapshot().Name, "err", err)
	}
}
