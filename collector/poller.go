package collector

import (
	"time"

	"banger/vmm"
)

// pollSlices is in how many parts a slow poll is spread over its interval.
const pollSlices = 16

// poller is the one goroutine that looks at VMs by itself: it keeps warm what was read in the last ten seconds and takes,
// of all living VMs, the process figures once every pollInterval. It also tells the health that follows from a change of state.
func (c *Collector) poller() {
	slow := time.NewTicker(max(c.pollInterval/pollSlices, time.Millisecond))
	defer slow.Stop()
	// A quarter of the shortest age: what is half way to being too old is then renewed in time.
	pace := max(min(c.statsMaxAge, c.portsMaxAge, c.healthMaxAge)/4, 10*time.Millisecond)
	fast := time.NewTicker(pace)
	fast.Stop()
	defer fast.Stop()
	slice := uint64(0)
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-slow.C:
			c.pollSlice(slice)
			slice = (slice + 1) % pollSlices
		case <-c.wake:
			c.tell()
			fast.Reset(pace)
		case <-fast.C:
			hot, booting := c.keepWarm(), c.tell()
			if !hot && !booting {
				fast.Stop() // until woken
			}
		}
	}
}

// pollSlice takes the process figures of one part of the living VMs. It asks neither guest nor VMM.
func (c *Collector) pollSlice(slice uint64) {
	c.each(func(v subject) {
		if v.Serial()%pollSlices != slice {
			return
		}
		s := v.Snapshot()
		if !s.State.Alive() || c.ctx.Err() != nil {
			return
		}
		e, err := c.entry(v)
		if err != nil {
			return
		}
		st := &Stats{State: s.State}
		c.processStats(e, s, st)
		st.Collected = c.now()
		e.slow.Store(&slowStats{s.Run, st})
	})
}

// touch puts e among those that the poller keeps warm.
func (c *Collector) touch(e *entry) {
	serial := e.vm.Serial()
	c.mu.RLock()
	_, hot := c.hot[serial]
	c.mu.RUnlock()
	if hot {
		return
	}
	c.mu.Lock()
	if c.entries[serial] == e {
		c.hot[serial] = e
	}
	c.mu.Unlock()
	c.wakePoller()
}

// wakePoller makes the poller look often, until there is nothing more to look at.
func (c *Collector) wakePoller() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// keepWarm begins a collection of each answer that was read lately and will soon be too old, and reports whether anything
// was read lately. It waits for none of them, so that a hung guest delays no other.
func (c *Collector) keepWarm() bool {
	c.mu.RLock()
	entries := make([]*entry, 0, len(c.hot))
	for _, e := range c.hot {
		entries = append(entries, e)
	}
	c.mu.RUnlock()
	any := false
	for _, e := range entries {
		if c.warmEntry(e) {
			any = true
			continue
		}
		c.mu.Lock()
		if c.hot[e.vm.Serial()] == e {
			delete(c.hot, e.vm.Serial())
		}
		c.mu.Unlock()
		// A read between the look and the removal found the entry hot: put it back.
		if e.readSince(c.now().Add(-keepWarm)) {
			c.touch(e)
			any = true
		}
	}
	return any
}

// readSince reports whether anything of the VM was read after t.
func (e *entry) readSince(t time.Time) bool {
	return e.stats.readSince(t) || e.ports.readSince(t) || e.health.readSince(t)
}

func (k *cached[T]) readSince(t time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.read.After(t)
}

func (c *Collector) warmEntry(e *entry) bool {
	s := e.vm.Snapshot()
	ep := epochOf(s)
	release := func() { <-c.warming }
	any := false
	slot := func(warm func() (begun, hot bool)) {
		select {
		case c.warming <- struct{}{}:
		default:
			any = true // no slot now: look again at the next tick
			return
		}
		begun, hot := warm()
		if !begun {
			release()
		}
		any = any || hot
	}
	slot(func() (bool, bool) { return e.stats.warm(c, ep, c.statsMaxAge, release, c.statsOf(e, s)) })
	if s.State == vmm.Running {
		slot(func() (bool, bool) { return e.ports.warm(c, ep, c.portsMaxAge, release, c.portsOf(e, s)) })
		if s.Ready {
			slot(func() (bool, bool) { return e.health.warm(c, ep, c.healthMaxAge, release, c.healthOf(e, s)) })
		}
	}
	return any
}
