package vmm

import (
	"context"
	"fmt"
)

func (v *VM) pause(ctx context.Context) error {
	return v.halt(ctx, Paused, func(m Machine) error { return m.Pause(ctx) })
}

func (v *VM) resume(ctx context.Context) error {
	return v.halt(ctx, Running, func(m Machine) error { return m.Resume(ctx) })
}

func (v *VM) halt(ctx context.Context, to State, do func(Machine) error) error {
	s := v.Snapshot()
	if err := do(s.Machine); err != nil {
		return fmt.Errorf("cannot make %s %s: %w", s.Name, to, err)
	}
	return v.enter(to, func(d *draft) { d.fail("") })
}

// isPaused reports whether the CPUs of a machine are stopped.
func isPaused(machine Machine) bool {
	return machine != nil && machine.Paused()
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
