package vmm

import (
	"context"
	"errors"
)

// notify hears what a machine tells of itself; it is called by the driver and must not block.
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

// exited records the end of a machine that nobody asked to end.
func (v *VM) exited() {
	for {
		v.mu.Lock()
		busy := v.busy
		if busy == nil {
			machine := v.Snapshot().Machine
			if machine == nil || v.removed {
				v.mu.Unlock()
				return // a transition has seen to it
			}
			select {
			case <-machine.Done():
			default:
				v.mu.Unlock()
				return // the notice was of an earlier run
			}
			t, err := v.launchLocked(exit, func(context.Context) error { return v.bury(machine) })
			v.mu.Unlock()
			if err == nil {
				<-t.done
			}
			return
		}
		v.mu.Unlock()
		select {
		case <-busy.done:
		case <-v.m.ctx.Done():
			return
		}
	}
}

// bury records how a machine ended by itself.
func (v *VM) bury(machine Machine) error {
	exit := machine.Exit()
	v.tellExit(exit)
	if exit.Orderly {
		return v.enter(Stopped, ended(""))
	}
	return v.enterFailed(exit.Reason)
}

// tellExit tells how a machine ended, before its VM is stopped or failed.
func (v *VM) tellExit(e Exit) {
	v.logf("exit: %s", e)
	v.emit(EventExit, e.String())
}
