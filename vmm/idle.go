package vmm

import "time"

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

// sweep stops VMs after their idle_timeout, resumes those that found no space, and records times of
// use. No VM holds up the others: work that would block is left to the next sweep.
func (m *Manager) sweep() {
	tick := time.NewTicker(m.o.Sweep)
	defer tick.Stop()
	persisted := time.Now()
	for n := 1; ; n++ {
		select {
		case <-m.closing:
			return
		case <-tick.C:
		}
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
			}
			if persist {
				v.publishUse()
				v.saveTouched(m.ctx)
				v.trimLog(s)
			}
		}
	}
}
