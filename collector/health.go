package collector

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"banger/vmm"
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
	if h := passive(s, c.now); h != nil {
		v.PublishHealth(h.String())
		return h, nil
	}
	c.touch(e)
	return e.health.get(ctx, c, epochOf(s), c.healthMaxAge, c.healthOf(e, s))
}

// passive gives the health that the VM's state alone tells, nil if its agent must be asked.
func passive(s *vmm.Snapshot, now func() time.Time) *Health {
	status, reason := "", ""
	switch s.State {
	case vmm.Starting:
		status = Starting
	case vmm.Paused:
		status = Paused
	case vmm.Running:
		if _, ok := s.Machine.(vmm.Guester); !ok {
			status, reason = Unhealthy, "no agent"
		} else if !s.Ready {
			status = Starting
		} else {
			return nil
		}
	default:
		status = Stopped
	}
	return &Health{Collected: now(), Status: status, Reason: reason}
}

// healthOf asks the agent of the VM that s shows, and publishes what came out if that is still the VM's present.
func (c *Collector) healthOf(e *entry, s *vmm.Snapshot) func(context.Context) (*Health, error) {
	return func(ctx context.Context) (*Health, error) {
		err := c.ask(ctx, e, s, func(ctx context.Context, g vmm.Guest) error {
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
