package vmm

import (
	"context"
	"errors"
)

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
	// An error is recorded by the transition.
	_ = v.after(exit, func(State) (work, error) {
		machine := v.Snapshot().Machine
		if machine == nil {
			return nil, nil // a transition has recorded it
		}
		select {
		case <-machine.Done():
			return func(context.Context) error { return v.bury(machine) }, nil
		default:
			return nil, nil // the notice was of an earlier run
		}
	})
}

// bury records the end of a machine that ended by itself.
func (v *VM) bury(machine Machine) error {
	exit := machine.Exit()
	v.reportExit(exit)
	if exit.Orderly {
		return v.enter(Stopped, ended(""))
	}
	return v.enterFailed(exit.Reason)
}

// reportExit emits how a machine ended, before its VM is stopped or failed.
func (v *VM) reportExit(e Exit) {
	v.logf("exit: %s", e)
	v.emit(EventExit, e.String())
}
