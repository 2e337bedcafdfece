package vmm

import "time"

// persistEvery bounds how old the durable time of the last use may be.
const persistEvery = time.Minute

// Touch renews the lease that idle_timeout counts from. It is cheap: it publishes nothing, blocks
// for nothing, and wakes nobody. The time is kept durably within a minute.
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

// Use keeps the VM from being idle until the function that it gives is called, once. It does not block.
func (v *VM) Use() func() {
	v.users.Add(1)
	return func() {
		v.Touch()
		v.users.Add(-1)
	}
}

// SetTouched is `touch -d` on touched, or a write of a time.
func (v *VM) SetTouched(t time.Time) {
	v.publish(func(s *Snapshot) {
		s.Touched = t
		s.Changed = s.Changed.with(time.Now(), "touched")
		v.used.Store(nil)
	})
}

// idle reports whether nobody has used the VM for its idle_timeout. Times of
// this daemon's life compare by the monotonic clock.
func (v *VM) idle(s *Snapshot) bool {
	if s.Config.IdleTimeout == NoLimit || s.State != Running && s.State != Paused || v.users.Load() > 0 {
		return false
	}
	used := v.Touched()
	if s.Since.After(used) {
		used = s.Since
	}
	return time.Since(used) >= s.Config.IdleTimeout
}

// sweep stops what nobody has used for its idle_timeout, lets what found no space go on, and
// keeps the times of use durable. No VM holds up the others: what cannot be done at once is left
// to the next sweep.
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
			if n%fullLook == 0 {
				v.goOn(s)
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
