package collector

// Watch makes the daemon ask for a VM's health by itself, as often as health_max_age, for somebody who is told of its changes; until as many
// calls of Unwatch. Serial 0 stands for all VMs, which are asked every poll_interval. It does not block.
func (c *Collector) Watch(serial uint64) {
	c.mu.Lock()
	c.watched[serial]++
	c.mu.Unlock()
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

// watchesAll reports whether somebody is told of all VMs' health.
func (c *Collector) watchesAll() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.watched[0] > 0
}

// wantWatched keeps the health of the VMs that are watched warm as if it were read, and reports whether there are any.
func (c *Collector) wantWatched() bool {
	var serials []uint64
	c.mu.RLock()
	for serial := range c.watched {
		if serial != 0 {
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
			c.answers(e).health.want(c.now())
			c.touch(e)
		}
	}
	return len(serials) > 0
}
