package collector

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"strings"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
)

// The values of Health.Status.
const (
	Healthy   = "healthy"
	Unhealthy = "unhealthy"
	Starting  = "starting"
	Paused    = "paused"
	Stopped   = "stopped"
)

// Health is one answer about a VM's health.
type Health struct {
	Collected time.Time
	Status    string // healthy unhealthy starting paused stopped
	Reason    string // of unhealthy
}

func (h *Health) String() string {
	if h.Reason == "" {
		return h.Status
	}
	return h.Status + " " + h.Reason
}

var healthKind = register(kind{
	name: "health", noun: "health", polled: true, asks: asksOnly, serves: ready,
	maxAge:  func(c *Collector) time.Duration { return c.healthMaxAge },
	collect: collectHealth,
})

// Health: see Stats. An agent that does not answer within 3 s is an answer (unhealthy), not an
// error.
func (c *Collector) Health(ctx context.Context, v VM) (*Health, error) {
	s := v.Snapshot()
	status, reason := passive(s)
	if status == "" {
		return read[Health](ctx, c, v, healthKind)
	}
	if _, err := c.entry(v); err != nil {
		return nil, err
	}
	h := &Health{Collected: c.now(), Status: status, Reason: reason}
	v.PublishHealth(h.String())
	return h, nil
}

// passive returns the health that follows from the VM's state, nothing if its agent must be asked.
func passive(s *vmm.Snapshot) (status, reason string) {
	switch s.State {
	case vmm.Starting:
		return Starting, ""
	case vmm.Paused:
		return Paused, ""
	case vmm.Running:
		if s.Agent() == nil {
			return Unhealthy, "no agent"
		}
		if !s.Ready {
			return Starting, ""
		}
		return "", ""
	}
	return Stopped, ""
}

// collectHealth asks the VM's agent, and publishes the result if its epoch has not ended.
func collectHealth(ctx context.Context, t *task) (any, error) {
	err := t.ask(ctx, func(ctx context.Context, g guest.Agent) error {
		_, err := g.Ping(ctx)
		return err
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	h := &Health{Collected: t.c.now(), Status: Healthy}
	if err != nil {
		h.Status, h.Reason = Unhealthy, reasonOf(err)
	}
	present := func() bool { return epochOf(t.e.vm.Snapshot()) == epochOf(t.s) }
	if present() {
		t.e.vm.PublishHealth(h.String())
		if !present() {
			t.c.stateChanged(t.s.Serial) // it changed just then: what was published must not stay
		}
	}
	return h, nil
}

// reasonOf says in a few words, on one line, why an agent did not answer.
func reasonOf(err error) string {
	for _, known := range []error{vmm.ErrTimeout, vmm.ErrNoAgent, vmm.ErrNotRunning} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return cut(strings.Join(strings.Fields(err.Error()), " "), 200)
}

// news is a change of state whose health is still to be published.
type news struct {
	change    uint64 // its number
	published string // the last one
}

// stateChanged notes that the health of a VM may follow from its new state. It does not block: the
// poller publishes it.
func (c *Collector) stateChanged(serial uint64) {
	c.mu.Lock()
	c.changes++
	c.untold[serial] = news{change: c.changes}
	c.mu.Unlock()
	c.wakePoller()
}

// publishUntold publishes the health of VMs whose state changed, so that watchers need not read it.
// It asks no guest. It reports whether some still boot: those it looks at again until their agent
// has answered.
func (c *Collector) publishUntold() bool {
	c.mu.RLock()
	untold := maps.Clone(c.untold)
	c.mu.RUnlock()
	for serial, n := range untold {
		health, done := "", true
		if v := c.find(serial); v != nil {
			status, reason := passive(v.Snapshot())
			// Ready: it has just answered the manager.
			h := Health{Status: cmp.Or(status, Healthy), Reason: reason}
			health, done = h.String(), status != Starting
			if health != n.published {
				v.PublishHealth(health)
			}
		}
		c.mu.Lock()
		switch {
		case c.untold[serial].change != n.change: // it changed again
		case done:
			delete(c.untold, serial)
		default:
			c.untold[serial] = news{n.change, health}
		}
		c.mu.Unlock()
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.untold) > 0
}
