package vmm

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

func (v *VM) pause(ctx context.Context) error {
	return v.halt(ctx, Paused, Machine.Pause, Machine.Resume)
}

func (v *VM) resume(ctx context.Context) error {
	err := v.halt(ctx, Running, Machine.Resume, Machine.Pause)
	if err == nil {
		v.setClock()
	}
	return err
}

// halt pauses or resumes the machine. It undoes that if it cannot be recorded.
func (v *VM) halt(ctx context.Context, to State,
	do, undo func(Machine, context.Context) error) error {
	s := v.Snapshot()
	if err := do(s.Machine, ctx); err != nil {
		return fmt.Errorf("cannot make %s %s: %w", s.Name, to, err)
	}
	err := v.enter(to, func(d *draft) { d.fail("") })
	if err != nil {
		if e := undo(s.Machine, context.WithoutCancel(ctx)); e != nil {
			v.logf("it is %s all the same: %v", to, e)
		}
	}
	return err
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
			v.acted(ActPause, nil)
			return nil
		}, nil
	})
	if err != nil && v.m.ctx.Err() == nil {
		v.m.o.Log.Error("cannot record that a VM was paused", "vm", v.Snapshot().Name, "err", err)
	}
}

const (
	// fullSweeps is after how many sweeps VMs that found no space may resume: every 3 s.
	fullSweeps = 3
	// roomToResume is how many bytes must be free then. With less the VM would stop again at once.
	roomToResume = 64 << 20
)

// full reports whether the VMM stopped the CPUs because a disk found no space on the host.
func (v *VM) full() bool {
	machine := v.Snapshot().Machine
	return machine != nil && machine.Full()
}

// fullError is the error of a VM that found no space on the host for a disk.
func (v *VM) fullError(disk string) error {
	return fmt.Errorf("paused: no space left on the host for its disk %s: "+
		"free %d MiB where %s is and it goes on by itself, or write resume to its state",
		disk, roomToResume>>20, v.Snapshot().Dir)
}

// resumeFull resumes a VM that found no space on the host if there is some again.
func (v *VM) resumeFull(s *Snapshot) {
	if s.State != Paused || s.Machine == nil || !s.Machine.Full() {
		return
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.Dir, &st); err != nil || int64(st.Bavail)*st.Bsize < roomToResume {
		return
	}
	if v.try(Resume) {
		v.logf("there is space on the host again")
		v.acted(ActResume, nil)
	}
}

// persistEvery bounds how old the durable time of the last use may be.
const persistEvery = time.Minute

// Touch makes now the time that idle_timeout counts from. It is cheap: it publishes nothing, does
// not block and wakes no waiter. The time is durable within a minute.
func (v *VM) Touch() {
	now := time.Now()
	v.used.Store(&now)
}

// Touched returns the time of the last use.
func (v *VM) Touched() time.Time {
	if t := v.used.Load(); t != nil {
		return *t
	}
	return v.Snapshot().Touched
}

// publishUse makes the last use part of the snapshot, from which it is recorded.
func (v *VM) publishUse() {
	if !v.Touched().Equal(v.Snapshot().Touched) {
		v.publish(func(s *Snapshot) { s.Touched = v.Touched() })
	}
}

// Use keeps the VM from being idle until the returned function is called, once. It does not block.
func (v *VM) Use() func() {
	v.users.Add(1)
	return func() {
		v.Touch()
		v.users.Add(-1)
	}
}

// SetTouched makes t the time of the last use.
func (v *VM) SetTouched(t time.Time) {
	v.publish(func(s *Snapshot) {
		s.Touched = t
		s.Changed = s.Changed.with(time.Now(), "touched")
		v.used.Store(nil)
	})
}

// idle reports whether the VM was not used for its idle_timeout. Times of this daemon's life are
// compared by the monotonic clock.
func (v *VM) idle(s *Snapshot) bool {
	on := s.State == Running || s.State == Paused
	if s.Config.IdleTimeout == NoLimit || !on || v.users.Load() > 0 {
		return false
	}
	used := v.Touched()
	if s.Since.After(used) {
		used = s.Since
	}
	return time.Since(used) >= s.Config.IdleTimeout
}

// sweep stops VMs after their idle_timeout, resumes those that found no space, corrects guests'
// clocks, and records times of use. No VM holds up the others: work that would block is left to the
// next sweep.
func (m *Manager) sweep() {
	tick := time.NewTicker(m.o.Sweep)
	defer tick.Stop()
	persisted, hostTime := time.Now(), readHostClock()
	for n := 1; ; n++ {
		select {
		case <-m.closing:
			return
		case <-tick.C:
		}
		m.tendClocks(&hostTime)
		persist := time.Since(persisted) >= persistEvery
		if persist {
			persisted = time.Now()
		}
		for _, v := range m.VMs() {
			s := v.Snapshot()
			if n%fullSweeps == 0 {
				v.resumeFull(s)
			}
			if v.idle(s) && v.try(Stop) {
				v.logf("stopping it: not used for %v", s.Config.IdleTimeout)
				v.acted(ActIdle, nil)
			}
			if persist {
				v.publishUse()
				v.saveTouched(m.ctx)
				v.trimLog(s)
			}
		}
	}
}
