package collector

import (
	"context"
	"math/rand/v2"
	"time"

	"banger/vmm"
)

const (
	// pollSlices is the number of parts over which a slow poll spreads its VMs in its interval.
	pollSlices = 16
	// ticksPerAge is the number of the poller's looks within the shortest max_age.
	ticksPerAge = 10
)

// poller is the one goroutine that looks at VMs by itself. It keeps warm what was read in the last
// ten seconds, asks for the health that is watched, and publishes the health that follows from a
// change of state. Once in each pollInterval it reads the process figures of all living VMs.
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
			c.publishUntold()
			if !often { // reads of one VM after the other must not put off the next look for ever
				often = true
				fast.Reset(pace)
			}
		case <-fast.C:
			watched := c.wantWatched()
			hot, booting := c.keepWarm(), c.publishUntold()
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

// slowPace is the time between two slices of the slow poll. It varies by a quarter, so that
// daemons on many hosts do not go in step.
func (c *Collector) slowPace() time.Duration {
	step := float64(c.pollInterval) / pollSlices
	return max(time.Duration(step*(0.75+rand.Float64()/2)), time.Millisecond)
}

// pollSlice reads the process figures of one part of the living VMs. It asks neither guest nor
// VMM, unless somebody watches the health of all VMs.
func (c *Collector) pollSlice(slice uint64) {
	now := c.now()
	all := c.watchesAll()
	c.each(func(v VM) {
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
		if all && ready(s) && !e.guest.rests(s, now) {
			t := &task{kind: healthKind, c: c, e: e, s: s, byPoller: true}
			e.cached(healthKind).collect(t, now, c.lane(e, s, nil))
		}
		st, _ := e.known(statsKind, s).(*Stats)
		if st != nil && now.Sub(st.Collected) < c.pollInterval {
			return // somebody reads them
		}
		st = &Stats{State: s.State}
		processStats(&task{c: c, e: e, s: s}, st, false)
		st.Collected = c.now()
		e.slow.Store(&slowStats{s.Run, st})
	})
}

// wakePoller makes the poller look often, until there is nothing more to look at.
func (c *Collector) wakePoller() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// tick is the number of the first look at t or later.
func (c *Collector) tick(t time.Time) int64 {
	pace := c.pace()
	return int64((t.Sub(c.began) + pace - 1) / pace)
}

// warmFromNow makes the poller keep warm the answer of a kind that was not read for a while. A VM
// that was removed meanwhile is dropped at the next look.
func (c *Collector) warmFromNow(t *task, cold bool) {
	if cold && t.polled {
		c.hot.add(t.e, 0)
		c.wakePoller()
	}
}

// keepWarm collects each answer that was read lately and will soon be too old, and reports whether
// anything was read lately. It waits for no guest, so that a hung one delays no other. While all
// slots are in use it waits for half a tick in all.
func (c *Collector) keepWarm() bool {
	now := c.now()
	hurry, cancel := context.WithTimeout(c.ctx, c.pace()/2)
	defer cancel()
	c.due = c.hot.take(int64(now.Sub(c.began)/c.pace()), c.due[:0])
	for _, e := range c.due {
		select {
		case <-e.gone:
			continue
		default:
		}
		if next := c.warmEntry(e, now, hurry.Done()); !next.IsZero() {
			c.hot.add(e, c.tick(next))
		}
	}
	clear(c.due)
	return !c.hot.empty()
}

// warmEntry begins the collections of a VM's answers that are due. It returns when to look again:
// the zero time if nothing was read lately.
func (c *Collector) warmEntry(e *entry, now time.Time, hurry <-chan struct{}) (next time.Time) {
	s := e.vm.Snapshot()
	rests := e.guest.rests(s, now)
	guests := c.lane(e, s, hurry)
	for _, k := range kinds {
		kept := e.cached(k)
		if !k.polled || kept.idle(now) {
			continue
		}
		at := now.Add(c.pace()) // the VM may have an answer by then
		if k.serves(s) && (k.asks != asksOnly || !rests) {
			l := lane{c.warming, hurry}
			if k.asks != asksNever && !rests {
				l = guests
			}
			at = kept.warm(&task{kind: k, c: c, e: e, s: s, byPoller: true}, now, l)
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}

// lane is where the poller acquires the slots for the collections of one VM.
type lane struct {
	slots chan struct{}
	hurry <-chan struct{} // closed when waits for a slot end; nil: there are none
}

// lane returns the narrow lane of their own for guests that did not answer the last time, so that
// they never use the slots of the others.
func (c *Collector) lane(e *entry, s *vmm.Snapshot, hurry <-chan struct{}) lane {
	if e.guest.doubted(s) {
		return lane{slots: c.doubting}
	}
	return lane{c.warming, hurry}
}

// acquire reports whether it got a slot, which the caller releases.
func (l lane) acquire() bool {
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
