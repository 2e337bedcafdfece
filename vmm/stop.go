package vmm

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// powerOffWait is for the agent to accept a shutdown.
const powerOffWait = 3 * time.Second

// killWait is for a killed VMM to be gone: one that hangs in the kernel may never be. Tests
// change it.
var killWait = 15 * time.Second

// stop asks the guest to power itself off, waits, and kills what is left.
func (v *VM) stop(ctx context.Context) error {
	s := v.Snapshot()
	machine := s.Machine
	if err := v.enter(Stopping, nil); err != nil {
		return err
	}
	if s.State == Paused {
		if p, ok := machine.(Pauser); ok {
			if err := p.Resume(ctx); err != nil {
				v.logf("cannot resume it for its stop: %v", err)
			}
		}
	}
	why := "its guest did not take the power off"
	if v.powerOff(ctx, machine) {
		timer := time.NewTimer(s.Config.StopTimeout)
		defer timer.Stop()
		select {
		case <-machine.Done():
		case <-timer.C:
			why = fmt.Sprintf("not off after %v", s.Config.StopTimeout)
			v.logf("%s: killing it", why)
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil { // by a kill
		why = killAsked
	}
	return v.finish(machine, why)
}

// powerOff reports whether the guest has accepted to end.
func (v *VM) powerOff(ctx context.Context, machine Machine) bool {
	g, ok := machine.(Guester)
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, powerOffWait)
	defer cancel()
	err := g.Guest().PowerOff(ctx)
	if err == nil {
		return true
	}
	select {
	case <-machine.Done(): // so fast that the answer was lost
		return false
	default:
		v.logf("the agent did not take the power off: %v", err)
	}
	return v.pressPower(machine)
}

// pressPower reports whether the machine has a power button that was pressed now.
func (v *VM) pressPower(machine Machine) bool {
	b, ok := machine.(PowerButton)
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(v.m.ctx, powerOffWait)
	defer cancel()
	err := b.PressPower(ctx)
	switch {
	case err == nil:
		v.logf("its power button was pressed")
	case !errors.Is(err, ErrUnsupported):
		v.logf("the power button cannot be pressed: %v", err)
	}
	return err == nil
}

// killAsked is why a machine was killed for which a user asked that.
const killAsked = "as asked"

func (v *VM) kill(context.Context) error {
	machine := v.Snapshot().Machine
	if err := v.enter(Stopping, nil); err != nil {
		return err
	}
	return v.finish(machine, killAsked)
}

// finish ends the process, whatever ctx says: a stop that was given up for a
// kill leaves the state stopping, which the kill takes up. why is told if it has not ended by itself.
func (v *VM) finish(machine Machine, why string) error {
	select {
	case <-machine.Done():
		v.tellExit(machine.Exit())
	default:
		if err := v.end(v.m.ctx, machine, why); err != nil {
			return fmt.Errorf("cannot end %s: %w", v.Snapshot().Name, err)
		}
	}
	return v.enter(Stopped, ended(""))
}

// end kills a machine and tells why. After an error it may still end, which is recorded then.
func (v *VM) end(ctx context.Context, machine Machine, why string) error {
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	if err := machine.Kill(ctx); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("its process %d was killed and has not ended within %v, the kernel holds it: %w", machine.Process().PID, killWait, ErrBusy)
		}
		return err
	}
	exit := machine.Exit()
	exit.Reason = why
	v.tellExit(exit)
	return nil
}

func (v *VM) restart(ctx context.Context) error {
	if err := v.stop(ctx); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("the restart of %s was given up: %w", v.Snapshot().Name, ErrGone)
	}
	return v.start(ctx)
}
