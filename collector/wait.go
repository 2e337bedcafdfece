package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"banger/vmm"
)

// The time between two questions to a guest for a port that somebody waits for.
const (
	portPaceFirst = 100 * time.Millisecond
	portPaceLast  = 500 * time.Millisecond
)

// portSet is the TCP ports that something in the guest listens on.
type portSet struct {
	seen  time.Time
	ports map[int]bool
}

var listenersKind = register(kind{
	name: "listeners", noun: "listeners", asks: asksOnly, serves: ready,
	maxAge: func(*Collector) time.Duration { return portPaceFirst }, // WaitPort has its own
	collect: func(ctx context.Context, t *task) (any, error) {
		listeners, err := t.listeners(ctx)
		set := &portSet{seen: t.c.now(), ports: map[int]bool{}}
		for _, l := range listeners {
			if l.Protocol == "tcp" {
				set.ports[l.Port] = true
			}
		}
		return set, err
	},
})

// WaitHealthy blocks until the VM's agent has answered and returns how long after its start that
// was. WaitPort blocks until something in the guest listens on TCP port. A VM that is stopped is
// waited for: somebody may start it. The errors are vmm.ErrGone when it can no longer happen,
// vmm.ErrNotFound when the VM is removed, vmm.ErrNoAgent when the machine has no channel to one,
// and ctx's error.
func (c *Collector) WaitHealthy(ctx context.Context, v VM) (time.Duration, error) {
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
		h, err := get[Health](ctx, &task{kind: healthKind, c: c, e: e, s: s}, c.healthMaxAge)
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
func (c *Collector) pause(
	ctx context.Context, e *entry, d time.Duration, changed <-chan struct{},
) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	case <-e.gone:
		return removed(e.vm.Snapshot())
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func removed(s *vmm.Snapshot) error {
	return fmt.Errorf("cannot wait for %s, it was removed: %w", s.Name, vmm.ErrNotFound)
}

// waitReady blocks until the VM runs and its agent has answered, which the manager publishes. It
// asks nobody.
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
			return nil, removed(s)
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.ctx.Done():
			return nil, errClosed
		}
	}
}

// WaitPort: see WaitHealthy. All waiters for ports of one VM share the agent's answers.
func (c *Collector) WaitPort(ctx context.Context, v VM, port int) (time.Duration, error) {
	e, err := c.entry(v)
	if err != nil {
		return 0, err
	}
	if port < 1 || port > 65535 {
		return 0, fmt.Errorf("cannot wait for port %d of %s: %w", port, v.Snapshot().Name,
			vmm.ErrInvalid)
	}
	pace := portPaceFirst
	for {
		s, err := c.waitReady(ctx, e)
		if err != nil {
			return 0, err
		}
		changed := e.vm.Changed()
		set, err := get[portSet](ctx, &task{kind: listenersKind, c: c, e: e, s: s}, pace)
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case errors.Is(err, vmm.ErrNoAgent), errors.Is(err, errClosed):
			return 0, err
		case err == nil && set.ports[port]:
			e.cached(portsKind).outdate(set.seen) // the waiter then finds the port in `ports`
			return max(0, c.now().Sub(s.Since)), nil
		}
		if err := c.pause(ctx, e, pace, changed); err != nil {
			return 0, err
		}
		pace = min(pace*5/4, portPaceLast)
	}
}
