package collector

import (
	"maps"
	"slices"
)

// Watch makes the poller ask for a VM's health every health_max_age, for a watcher of its changes.
// Each call lasts until one of Unwatch. Serial 0 is all VMs, which are asked every poll_interval.
// It does not block.
func (c *Collector) Watch(serial uint64) {
	c.mu.Lock()
	c.watched[serial]++
	c.mu.Unlock()
	c.wantHealth(serial)
	c.wakePoller()
}

// Unwatch ends a Watch.
func (c *Collector) Unwatch(serial uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watched[serial]--; c.watched[serial] <= 0 {
		delete(c.watched, serial)
	}
}

// watchesAll reports whether somebody watches the health of all VMs.
func (c *Collector) watchesAll() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.watched[0] > 0
}

// wantWatched keeps the health of watched VMs warm as if it were read, and reports whether there
// are any.
func (c *Collector) wantWatched() bool {
	c.mu.RLock()
	serials := slices.DeleteFunc(slices.Collect(maps.Keys(c.watched)),
		func(serial uint64) bool { return serial == 0 })
	c.mu.RUnlock()
	if now := c.now(); now.Sub(c.wanted) > keepWarm/4 {
		c.wanted = now
		for _, serial := range serials {
			c.wantHealth(serial)
		}
	}
	return len(serials) > 0
}

// wantHealth counts as a read of a VM's health.
func (c *Collector) wantHealth(serial uint64) {
	v := c.find(serial)
	if v == nil {
		return
	}
	if e, err := c.entry(v); err == nil {
		t := task{kind: healthKind, e: e}
		c.warmFromNow(&t, e.cached(healthKind).want(c.now()))
	}
}
