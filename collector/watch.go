package collector

import "time"

// watching is who is told of a VM's health and reads nothing.
type watching struct {
	n     int
	since time.Time // when the first of them came
}

// Watch makes the daemon ask for a VM's health by itself, as often as health_max_age, for somebody who is told of its changes; until as many
// calls of Unwatch. Serial 0 stands for all VMs, which are asked every poll_interval. It does not block.
func (c *Collector) Watch(serial uint64) {
	c.mu.Lock()
	w := c.watched[serial]
	if w.n == 0 {
		w.since = c.now()
	}
	w.n++
	c.watched[serial] = w
	c.mu.Unlock()
	c.wakePoller()
}

// Unwatch ends a Watch.
func (c *Collector) Unwatch(serial uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.watched[serial]
	if w.n--; w.n <= 0 {
		delete(c.watched, serial)
		return
	}
	c.watched[serial] = w
}

// watchesAll reports whether somebody is told of all VMs' health.
func (c *Collector) watchesAll(now time.Time) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	w, ok := c.watched[0]
	return ok && now.Sub(w.since) >= watchGrace
}

// wantWatched keeps the health of the VMs that are watched warm as if it were read, and reports whether there are any.
func (c *Collector) wantWatched() bool {
	now := c.now()
	any := false
	var serials []uint64
	c.mu.RLock()
	for serial, w := range c.watched {
		if serial == 0 {
			continue
		}
		any = true
		if now.Sub(w.since) >= watchGrace {
			serials = append(serials, serial)
		}
	}
	c.mu.RUnlock()
	for _, serial := range serials {
		v := c.find(serial)
		if v == nil {
			continue
		}
		if e, err := c.entry(v); err == nil {
			e.health.want(now)
			c.touch(e)
		}
	}
	return any
}
