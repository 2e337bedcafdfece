package vmm

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// powerOffWait bounds the wait for the agent to accept a shutdown.
const powerOffWait = 3 * time.Second

// killWait bounds the wait for the end of a killed VMM, which may hang in the kernel for ever.
// Tests change it.
var killWait = 15 * time.Second

// stop returns early when the daemon begins to end: the guest needs no daemon to stop.
func (v *VM) stop(ctx context.Context) error { return v.stopUntil(ctx, v.m.closing) }

// stopUntil asks the guest to power itself off, waits, and then kills the machine. When leave is
// closed, it leaves the guest to the next daemon.
func (v *VM) stopUntil(ctx context.Context, leave <-chan struct{}) error {
	s := v.Snapshot()
	machine := s.Machine
	if err := v.enterStopping(s.Config.StopTimeout); err != nil {
		return err
	}
	asking, cancel := endsWith(ctx, leave)
	defer cancel()
	if s.State == Paused {
		v.wake(asking, machine)
	}
	if v.powerOff(asking, machine) || asking.Err() != nil {
		return v.awaitOff(ctx, machine, s.Config.StopTimeout, leave)
	}
	return v.finish(machine, "its guest did not accept the shutdown")
}

// endsWith returns a context that ends with ctx and when the channel is closed. The caller cancels
// it.
func endsWith(ctx context.Context, closed <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // ends with the context
		select {
		case <-closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// enterStopping records the time at which the guest will be killed, for the next daemon.
func (v *VM) enterStopping(timeout time.Duration) error {
	return v.enter(Stopping, func(d *draft) { d.StopBy = time.Now().Add(timeout) })
}

// wake resumes paused CPUs, so that the guest can stop.
func (v *VM) wake(ctx context.Context, machine Machine) {
	if err := machine.Resume(ctx); err != nil {
		v.logf("cannot resume it for its stop: %v", err)
	}
}

// awaitOff waits until the guest is off. It kills the guest after the given time, or when a user
// asks for that. When leave is closed or the Manager waits no longer, it leaves the guest to the
// next daemon.
func (v *VM) awaitOff(ctx context.Context, machine Machine, most time.Duration,
	leave <-chan struct{}) error {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-machine.Done():
		return v.finish(machine, "")
	case <-timer.C:
		why := fmt.Sprintf("not off after %v", v.Snapshot().Config.StopTimeout)
		v.logf("%s: killing it", why)
		return v.finish(machine, why)
	case <-leave:
	case <-ctx.Done():
		if v.m.ctx.Err() == nil {
			return v.finish(machine, killAsked)
		}
	}
	return fmt.Errorf("%s is still stopping while the daemon ends: %w", v.Snapshot().Name, ErrGone)
}

// resumeStop ends a stop that an earlier daemon began, at the time that it recorded. It asks the
// guest once more, since that daemon may have ended before it asked. It ignores the answer, since
// the guest's agent may have ended already.
func (v *VM) resumeStop(ctx context.Context) error {
	s := v.Snapshot()
	machine := s.Machine
	left := s.Config.StopTimeout
	if !s.StopBy.IsZero() { // an earlier version recorded none
		left = min(left, time.Until(s.StopBy)) // by a clock that may have jumped
	}
	deadline := time.Now().Add(left)
	timed, end := context.WithDeadline(ctx, deadline)
	defer end()
	asking, cancel := endsWith(timed, v.m.closing)
	defer cancel()
	if asking.Err() == nil {
		if isPaused(machine) {
			v.wake(asking, machine)
		}
		v.powerOff(asking, machine)
	}
	return v.awaitOff(ctx, machine, time.Until(deadline), v.m.closing)
}

// powerOff reports whether the guest has accepted to end.
func (v *VM) powerOff(ctx context.Context, machine Machine) bool {
	agent := machine.Guest()
	if agent == nil {
		return false
	}
	asking, cancel := context.WithTimeout(ctx, powerOffWait)
	defer cancel()
	err := agent.PowerOff(asking)
	if err == nil || ctx.Err() != nil {
		return err == nil
	}
	select {
	case <-machine.Done(): // so fast that the answer was lost
		return false
	default:
		v.logf("the agent did not accept the shutdown: %v", err)
	}
	return v.pressPower(ctx, machine)
}

// pressPower presses the machine's power button and reports whether that was possible.
func (v *VM) pressPower(ctx context.Context, machine Machine) bool {
	ctx, cancel := context.WithTimeout(ctx, powerOffWait)
	defer cancel()
	err := machine.PressPower(ctx)
	switch {
	case err == nil:
		v.logf("its power button was pressed")
	case !errors.Is(err, ErrUnsupported):
		v.logf("the power button cannot be pressed: %v", err)
	}
	return err == nil
}

// killAsked is the reason of a kill that a user asked for.
const killAsked = "as asked"

func (v *VM) kill(context.Context) error {
	machine := v.Snapshot().Machine
	if err := v.enterStopping(0); err != nil {
		return err
	}
	return v.finish(machine, killAsked)
}

// finish ends the process and records that the VM is stopped, also for a stop that a kill has
// cancelled. why is the reason of the exit unless the process has ended by itself.
func (v *VM) finish(machine Machine, why string) error {
	select {
	case <-machine.Done():
		v.reportExit(v.exitOf(machine))
	default:
		if err := v.end(v.m.ctx, machine, why); err != nil {
			return fmt.Errorf("cannot end %s: %w", v.Snapshot().Name, err)
		}
	}
	return v.enter(Stopped, ended(""))
}

// end kills a machine and reports its exit with the reason why. After an error the machine may
// still end, which its driver notices.
func (v *VM) end(ctx context.Context, machine Machine, why string) error {
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	if err := machine.Kill(ctx); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("its process %d was killed, but the kernel has not ended it "+
				"within %v: %w", machine.Process().PID, killWait, ErrBusy)
		}
		return err
	}
	exit := machine.Exit()
	exit.Reason = why
	v.reportExit(exit)
	return nil
}

func (v *VM) restart(ctx context.Context) error {
	if err := v.stopUntil(ctx, v.m.ctx.Done()); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("the restart of %s was cancelled: %w", v.Snapshot().Name, ErrGone)
	}
	return v.start(ctx)
}

// notify receives the notices of a machine. Its driver calls it, so that it must not block.
func (v *VM) notify(n Notice) {
	switch n.Kind {
	case NoticeExited:
		v.m.spawn(v.exited)
	case NoticePanic:
		v.logf("the guest's kernel panicked: %s", n.Detail)
		v.emit(EventPanic, n.Detail)
	case NoticePaused, NoticeFull:
		why := errors.New(n.Detail)
		if n.Kind == NoticeFull {
			why = v.fullError(n.Detail)
		}
		v.logf("%v", why)
		v.m.spawn(func() { v.halted(why) })
	case NoticeError:
		v.logf("%s", n.Detail)
		v.m.spawn(func() { v.Fail(errors.New(n.Detail)) })
	}
}

// exited records the end of a machine that no command ended.
func (v *VM) exited() {
	command := exit
	if machine := v.Snapshot().Machine; machine != nil && machine.Exit().Rebooted {
		command = reboot
	}
	// An error is recorded by the transition.
	_ = v.after(command, func(State) (work, error) {
		machine := v.Snapshot().Machine
		if machine == nil {
			return nil, nil // a transition has recorded it
		}
		select {
		case <-machine.Done():
			return func(ctx context.Context) error { return v.bury(ctx, machine) }, nil
		default:
			return nil, nil // the notice was of an earlier run
		}
	})
}

// bury records the end of a machine that ended by itself. After a reboot it starts the VM again.
func (v *VM) bury(ctx context.Context, machine Machine) error {
	exit := v.exitOf(machine)
	v.reportExit(exit)
	if exit.Rebooted && v.Snapshot().State != Stopping {
		return v.reboot(ctx)
	}
	if exit.Orderly {
		err := v.enter(Stopped, ended(""))
		v.acted(ActEnd, err)
		return err
	}
	err := v.enterFailed(exit.Reason)
	v.acted(ActFail, err)
	return err
}

// reportExit emits how a machine ended, before its VM is stopped or failed.
func (v *VM) reportExit(e Exit) {
	v.logf("exit: %s", e)
	v.emit(EventExit, e.String())
}
