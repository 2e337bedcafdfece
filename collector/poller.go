package collector

import (
	"context"
	"math/rand/v2"
	"time"

	"banger/vmm"
)

const (
	// pollSlices is in how many parts a slow poll is spread over its interval.
	pollSlices = 16
	// ticksPerAge is how often what was read lately is looked at within the shortest max_age.
	ticksPerAge = 10
)

// poller is the one goroutine that looks at VMs by itself: it keeps warm what was read in the last ten seconds, asks for the health of what
// is watched, and takes, of all living VMs, the process figures once every pollInterval. It also tells the health that follows from a change of state.
func (c *Collector) poller() {
	slow := time.NewTimer(c.slowPace())
	defer slow.Stop()
	pace := c.pace()
	fast := time.NewTicker(pace)
	fast.Stop()
	defer fast.Stop()
	slice, often := uint64(0), false
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-slow.C:
			c.pollSlice(slice)
			slice = (slice + 1) % pollSlices
			slow.Reset(c.slowPace())
		case <-c.wake:
			c.tell()
			if !often { // or whoever reads one VM after the other would put off the next look for ever
				often = true
				fast.Reset(pace)
			}
		case <-fast.C:
			watched := c.wantWatched()
			hot, booting := c.keepWarm(), c.tell()
			if often = hot || booting || watched; !often {
				fast.Stop() // until woken
			}
		}
	}
}

// pace is the time between two looks at what is kept warm.
func (c *Collector) pace() time.Duration {
	return max(min(c.statsMaxAge, c.portsMaxAge, c.healthMaxAge)/ticksPerAge, 10*time.Millisecond)
}

// slowPace is the time between two slices of the slow poll, a quarter more or less so that daemons on many hosts do not go in step.
func (c *Collector) slowPace() time.Duration {
	step := float64(c.pollInterval) / pollSlices
	return max(time.Duration(step*(0.75+rand.Float64()/2)), time.Millisecond)
}

// pollSlice takes the process figures of one part of the living VMs. It asks neither guest nor VMM, unless somebody watches the health of all VMs.
func (c *Collector) pollSlice(slice uint64) {
	now := c.now()
	all := c.watchesAll()
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
		if all && s.State == vmm.Running && s.Ready && !e.guest.rests(s, now) {
			c.answers(e).health.begin(c, epochOf(s), now, c.lane(e, s, nil), c.healthOf(e, s))
		}
		if a := e.read.Load(); a != nil {
			if st := a.stats.known(epochOf(s)); st != nil && now.Sub(st.Collected) < c.pollInterval {
				return // somebody reads them
			}
		}
		st := &Stats{State: s.State}
		c.processStats(e, s, st, false)
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
		c.hotList = nil
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

// hotNow gives the entries that are kept warm.
func (c *Collector) hotNow() []*entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hotList == nil && len(c.hot) > 0 {
		c.hotList = make([]*entry, 0, len(c.hot))
		for _, e := range c.hot {
			c.hotList = append(c.hotList, e)
		}
	}
	return c.hotList
}

// keepWarm begins a collection of each answer that was read lately and will soon be too old, and reports whether anything
// was read lately. It waits for none of them, so that a hung guest delays no other; while all slots are taken it waits for half a tick in all.
func (c *Collector) keepWarm() bool {
	now := c.now()
	hurry, cancel := context.WithTimeout(c.ctx, c.pace()/2)
	defer cancel()
	any := false
	for _, e := range c.hotNow() {
		due := e.due.Load()
		if int64(now.Sub(c.began)) < due {
			any = true
			continue
		}
		if next := c.warmEntry(e, now, hurry.Done()); !next.IsZero() {
			e.due.CompareAndSwap(due, int64(next.Sub(c.began))) // unless another kind has just been read
			any = true
			continue
		}
		serial := e.vm.Serial()
		c.mu.Lock()
		if c.hot[serial] == e {
			delete(c.hot, serial)
			c.hotList = nil
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
	a := e.read.Load()
	return a != nil && (a.stats.readSince(t) || a.ports.readSince(t) || a.health.readSince(t) || a.vmmMetrics.readSince(t))
}

func (k *cached[T]) readSince(t time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.read.After(t)
}

// warmEntry begins the collections of a VM's answers that are due, and gives when to look again; the zero time if nothing was read lately.
func (c *Collector) warmEntry(e *entry, now time.Time, hurry <-chan struct{}) time.Time {
	s, a := e.vm.Snapshot(), c.answers(e)
	ep := epochOf(s)
	var next time.Time
	look := func(at time.Time) {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	if s.State.Alive() {
		look(a.vmmMetrics.warm(c, ep, now, c.statsMaxAge, lane{c.warming, hurry}, c.vmmMetricsOf(s)))
	}
	if rests := e.guest.rests(s, now); rests {
		look(a.stats.warm(c, ep, now, c.statsMaxAge, lane{c.warming, hurry}, c.statsOf(e, s, false)))
		if e.readSince(now.Add(-keepWarm)) {
			look(now.Add(c.pace())) // it may be asked again then
		}
		return next
	}
	lane := c.lane(e, s, hurry)
	look(a.stats.warm(c, ep, now, c.statsMaxAge, lane, c.statsOf(e, s, true)))
	if s.State == vmm.Running {
		look(a.ports.warm(c, ep, now, c.portsMaxAge, lane, c.portsOf(e, s)))
		if s.Ready {
			look(a.health.warm(c, ep, now, c.healthMaxAge, lane, c.healthOf(e, s)))
		}
	}
	return next
}

// lane is where the poller takes the slots for the collections of one VM.
type lane struct {
	slots chan struct{}
	hurry <-chan struct{} // closed when nobody waits for a slot any more; nil: nobody does at all
}

// lane gives those of a guest that did not answer the last time a narrow one of their own, so that they never take the slots of the others.
func (c *Collector) lane(e *entry, s *vmm.Snapshot, hurry <-chan struct{}) lane {
	if e.guest.doubted(s) {
		return lane{slots: c.doubting}
	}
	return lane{c.warming, hurry}
}

// take reports whether it got a slot, which the caller gives back.
func (l lane) take() bool {
	select {
	case l.slots <- struct{}{}:
		return true
	default:
	}
	if l.hurry == nil {
		return false
	}
	select {
	case l.slots <- struct{}{}:
		return true
	case <-l.hurry:
		return false
	}
}

func (l lane) release() { <-l.slots }
