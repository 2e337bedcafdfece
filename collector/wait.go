package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"banger/vmm"
)

// How often a guest is asked for a port that somebody waits for: often at first, then less.
const (
	portPaceFirst = 100 * time.Millisecond
	portPaceLast  = 500 * time.Millisecond
)

// portSet is the TCP ports that something in the guest listens on.
type portSet struct {
	seen  time.Time
	ports map[int]struct{}
}

// WaitHealthy blocks until the VM's agent has answered and gives how long after its start that was;
// WaitPort until something in the guest listens on TCP port. vmm.ErrGone when it can no longer come, vmm.ErrNotFound when the VM is removed,
// vmm.ErrNoAgent when the machine has no channel to one, ctx's error when that ends first.
// A VM that is stopped is waited for: somebody may start it.
func (c *Collector) WaitHealthy(ctx context.Context, v *vmm.VM) (time.Duration, error) {
	return c.waitHealthy(ctx, v)
}

func (c *Collector) waitHealthy(ctx context.Context, v subject) (time.Duration, error) {
	e, err := c.entry(v)
	if err != nil {
		return 0, err
	}
	for {
		s, err := c.waitReady(ctx, e)
		if err != nil {
			return 0, err
		}
		if c.now().Sub(s.Since.Add(s.ReadyIn)) <= c.healthMaxAge {
			return s.ReadyIn, nil // it has just answered the manager
		}
		changed := e.vm.Changed()
		h, err := c.answers(e).health.get(ctx, c, epochOf(s), c.healthMaxAge, c.healthOf(e, s))
		switch {
		case ctx.Err() != nil || errors.Is(err, errClosed):
			return 0, cmp.Or(ctx.Err(), err)
		case err == nil && h.Status == Healthy:
			return s.ReadyIn, nil
		}
		if err := c.pause(ctx, e, c.healthMaxAge, changed); err != nil {
			return 0, err
		}
	}
}

// pause waits for d or a change of the VM; an error when ctx ends or the VM is removed.
func (c *Collector) pause(ctx context.Context, e *entry, d time.Duration, changed <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	case <-e.gone:
		return fmt.Errorf("cannot wait for %s, it was removed: %w", e.vm.Snapshot().Name, vmm.ErrNotFound)
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// waitReady blocks until the VM runs and its agent has answered. It asks nobody: the manager publishes that.
func (c *Collector) waitReady(ctx context.Context, e *entry) (*vmm.Snapshot, error) {
	for {
		changed := e.vm.Changed() // before the snapshot, so that no change is missed
		s := e.vm.Snapshot()
		switch s.State {
		case vmm.Failed:
			return nil, fmt.Errorf("cannot wait for %s, it failed: %w", s.Name, vmm.ErrGone)
		case vmm.Running:
			if s.Ready {
				return s, nil
			}
			if s.Agent() == nil {
				return nil, fmt.Errorf("cannot wait for %s: %w", s.Name, vmm.ErrNoAgent)
			}
		}
		select {
		case <-changed:
		case <-e.gone:
			return nil, fmt.Errorf("cannot wait for %s, it was removed: %w", s.Name, vmm.ErrNotFound)
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.ctx.Done():
			return nil, errClosed
		}
	}
}

// WaitPort: see WaitHealthy. All who wait for ports of one VM share the agent's answers.
func (c *Collector) WaitPort(ctx context.Context, v *vmm.VM, port int) (time.Duration, error) {
	return c.waitPort(ctx, v, port)
}

func (c *Collector) waitPort(ctx context.Context, v subject, port int) (time.Duration, error) {
	e, err := c.entry(v)
	if err != nil {
		return 0, err
	}
	if port < 1 || port > 65535 {
		return 0, fmt.Errorf("cannot wait for port %d of %s: %w", port, v.Snapshot().Name, vmm.ErrInvalid)
	}
	pace := portPaceFirst
	for {
		s, err := c.waitReady(ctx, e)
		if err != nil {
			return 0, err
		}
		changed := e.vm.Changed()
		set, err := c.answers(e).listeners.get(ctx, c, epochOf(s), pace, func(ctx context.Context) (*portSet, error) {
			ls, err := c.askListeners(ctx, e, s)
			if err != nil {
				return nil, err
			}
			set := &portSet{seen: c.now(), ports: map[int]struct{}{}}
			for _, l := range ls {
				if l.Protocol == "tcp" {
					set.ports[l.Port] = struct{}{}
				}
			}
			return set, nil
		})
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case errors.Is(err, vmm.ErrNoAgent), errors.Is(err, errClosed):
			return 0, err
		case err == nil:
			if _, ok := set.ports[port]; ok {
				c.answers(e).ports.outdate(set.seen) // who waited for a port finds it in `ports`
				return max(0, c.now().Sub(s.Since)), nil
			}
		}
		if err := c.pause(ctx, e, pace, changed); err != nil {
			return 0, err
		}
		pace = min(pace*5/4, portPaceLast)
	}
}
