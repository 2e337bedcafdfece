package collector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"banger/vmm"
	"banger/vmm/guest"
)

// What Health.Status may be.
const (
	Healthy   = "healthy"
	Unhealthy = "unhealthy"
	Starting  = "starting"
	Paused    = "paused"
	Stopped   = "stopped"
)

// Health: see Stats. An agent that does not answer within 3 s is an answer (unhealthy), not an error.
func (c *Collector) Health(ctx context.Context, v *vmm.VM) (*Health, error) {
	return c.healthNow(ctx, v)
}

func (c *Collector) healthNow(ctx context.Context, v subject) (*Health, error) {
	e, err := c.entry(v)
	if err != nil {
		return nil, err
	}
	s := v.Snapshot()
	if status, reason := passive(s); status != "" {
		h := &Health{Collected: c.now(), Status: status, Reason: reason}
		v.PublishHealth(h.String())
		return h, nil
	}
	c.touch(e)
	return c.answers(e).health.get(ctx, c, epochOf(s), c.healthMaxAge, c.healthOf(e, s))
}

// passive gives the health that the VM's state alone tells, nothing if its agent must be asked.
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

// healthOf asks the agent of the VM that s shows, and publishes what came out if that is still the VM's present.
func (c *Collector) healthOf(e *entry, s *vmm.Snapshot) func(context.Context) (*Health, error) {
	return func(ctx context.Context) (*Health, error) {
		err := c.ask(ctx, e, s, func(ctx context.Context, g guest.Agent) error {
			_, err := g.Ping(ctx)
			return err
		})
		if ctx.Err() != nil {
			return nil, fmt.Errorf("cannot read health of %s: %w", s.Name, ctx.Err())
		}
		h := &Health{Collected: c.now(), Status: Healthy}
		if err != nil {
			h.Status, h.Reason = Unhealthy, reasonOf(err)
		}
		if epochOf(e.vm.Snapshot()) == epochOf(s) {
			e.vm.PublishHealth(h.String())
			if epochOf(e.vm.Snapshot()) != epochOf(s) {
				c.stateChanged(s.Serial) // it changed just then: what was published last must not stay
			}
		}
		return h, nil
	}
}

// reasonOf says in a few words, on one line, why an agent gave no answer.
func reasonOf(err error) string {
	for _, known := range []error{vmm.ErrTimeout, vmm.ErrNoAgent, vmm.ErrNotRunning} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return cut(strings.Join(strings.Fields(err.Error()), " "), 200)
}

// news is a change of state whose health is still to be told.
type news struct {
	change uint64 // which one
	told   string // last told of it
}

// stateChanged notes that the health of a VM may follow from its new state. It does not block: the poller tells it.
func (c *Collector) stateChanged(serial uint64) {
	c.mu.Lock()
	c.changes++
	c.untold[serial] = news{change: c.changes}
	c.mu.Unlock()
	c.wakePoller()
}

// tell publishes the health of VMs whose state changed, so that who watches for it need not read it, and reports whether some
// still boot: those are looked at again until their agent has answered. No guest is asked.
func (c *Collector) tell() bool {
	c.mu.RLock()
	untold := maps.Clone(c.untold)
	c.mu.RUnlock()
	for serial, n := range untold {
		v := c.find(serial)
		if v == nil {
			c.told(serial, n, "", true)
			continue
		}
		var h Health
		if h.Status, h.Reason = passive(v.Snapshot()); h.Status == "" {
			h.Status = Healthy // ready: it has just answered the manager
		}
		if h.String() != n.told {
			v.PublishHealth(h.String())
		}
		c.told(serial, n, h.String(), h.Status != Starting)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.untold) > 0
}

// told notes what tell published, unless the state has changed again meanwhile.
func (c *Collector) told(serial uint64, n news, health string, done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.untold[serial].change != n.change:
	case done:
		delete(c.untold, serial)
	default:
		n.told = health
		c.untold[serial] = n
	}
}
