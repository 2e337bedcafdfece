package vmm

import (
	"context"
	"errors"
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

// isPaused reports whether the CPUs of a machine stand still.
func isPaused(machine Machine) bool {
	p, ok := machine.(interface{ Paused() bool })
	return ok && p.Paused()
}

// halted records that the VMM stopped the CPUs by itself.
func (v *VM) halted(why error) {
	for {
		t, err := v.beginWork(v.m.ctx, Pause, func(state State) (func(context.Context) error, error) {
			if state != Running || !isPaused(v.Snapshot().Machine) {
				return nil, nil // it ended, or somebody let it go on
			}
			return func(context.Context) error {
				return v.enter(Paused, func(d *draft) { d.fail(why.Error()) })
			}, nil
		})
		if t != nil {
			<-t.done
			if err = t.err; err == nil {
				v.emit(EventError, why.Error())
			}
		}
		if err == nil || v.m.ctx.Err() != nil {
			return
		}
		busy := v.transition()
		if !errors.Is(err, ErrBusy) || busy == nil {
			v.m.o.Log.Error("cannot record that a VM was paused", "vm", v.Snapshot().Name, "err", err)
			return
		}
		<-busy.done // it has just started
	}
}
