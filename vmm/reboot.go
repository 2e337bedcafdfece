package vmm

import (
	"context"
	"fmt"
	"time"
)

// A VMM ends when its guest reboots, and the VM starts again with a new one.

const (
	rebootSoon   = 10 * time.Second // a run that was shorter is repeated only after a while
	rebootAgain  = time.Second      // the first such while, then twice as long
	rebootAtLast = time.Minute      // and at most this
)

// rebootWait returns how long to wait before a start, after n runs that each rebooted soon.
func rebootWait(n int) time.Duration {
	wait := time.Duration(0)
	for ; n > 0 && wait < rebootAtLast; n-- {
		wait = max(rebootAgain, 2*wait)
	}
	return min(wait, rebootAtLast)
}

// reboot starts the VM again after its guest has rebooted. Before that it waits, longer each time,
// while the guest reboots soon after its starts. A stop or a kill ends it. Of a reboot that the
// daemon's end interrupts, the next daemon does the rest.
func (v *VM) reboot(ctx context.Context) error {
	ran := time.Since(v.Snapshot().Since)
	v.reboots++
	if ran >= rebootSoon {
		v.reboots = 0
	}
	wait := rebootWait(v.reboots)
	detail, sentence := "", ""
	if wait > 0 {
		detail = fmt.Sprintf("in %.0fs", wait.Seconds())
		sentence = fmt.Sprintf("the guest rebooted %.1f s after its start, %d times in a row: "+
			"it starts again in %.0f s", ran.Seconds(), v.reboots, wait.Seconds())
	}
	v.emit(EventReboot, detail)
	err := v.enter(Starting, func(d *draft) {
		d.Rebooting, d.Process, d.run = true, Process{}, &CurrentRun{}
		d.fail(sentence)
	})
	if err != nil {
		return v.fails(err)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-v.m.closing:
		return v.leftRebooting()
	}
	return v.startRebooted(ctx)
}

// resumeReboot does the rest of a reboot that an earlier daemon began, once Open has recovered all
// VMs: until then the network is not settled.
func (v *VM) resumeReboot(ctx context.Context) error {
	select {
	case <-v.m.opened:
	case <-ctx.Done():
	case <-v.m.closing:
		return v.leftRebooting()
	}
	return v.startRebooted(ctx)
}

// startRebooted starts a VM that is rebooting. Once its context has ended, the VM is stopped.
func (v *VM) startRebooted(ctx context.Context) error {
	switch {
	case v.m.ctx.Err() != nil:
		return v.leftRebooting()
	case ctx.Err() != nil:
		return v.enter(Stopped, ended(""))
	}
	err := v.start(ctx)
	if s := v.Snapshot(); err != nil && s.State == Starting && v.m.ctx.Err() == nil {
		err = v.fails(err) // the start was refused: a VM that runs no more must not seem to start
	}
	if ctx.Err() == nil {
		v.acted(ActReboot, err)
	}
	return err
}

// leftRebooting returns the error of a reboot that is left to the next daemon.
func (v *VM) leftRebooting() error {
	return fmt.Errorf("%s is still rebooting while the daemon ends: %w", v.Snapshot().Name, ErrGone)
}
