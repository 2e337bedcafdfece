package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
)

// patience remembers that a guest did not answer. Otherwise a reader of many files of many VMs would
// wait the full time for each file of each hung guest. For a moment all who ask get the timeout at
// once. Then the guest is given a moment only, until it answers again or some time has passed.
type patience struct {
	mu sync.Mutex
	// guarded by mu
	run    uint64
	silent time.Time // when an answer last failed to come in full time
	failed time.Time // when one last failed to come
	missed int       // answers in a row that did not come
	until  time.Time // the poller leaves the guest alone
}

// left returns how long the guest of that run may take now; 0: it is not to be asked.
func (p *patience) left(s *vmm.Snapshot, now time.Time, full time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.run == s.Run && !p.failed.IsZero() && now.Sub(p.failed) < guestSilence:
		return 0
	case !s.Ready && !s.Since.IsZero():
		// The manager has been asking since the start; what is left of the full time is what a guest that boots still has.
		return min(full, max(full-now.Sub(s.Since), guestBriefly))
	case p.run == s.Run && !p.silent.IsZero() && now.Sub(p.silent) < guestDoubt:
		return min(full, guestBriefly)
	}
	return full
}

// note records how a call ended that was given that long.
func (p *patience) note(s *vmm.Snapshot, now time.Time, full, given time.Duration, timedOut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !timedOut {
		p.silent, p.failed, p.missed, p.until = time.Time{}, time.Time{}, 0, time.Time{}
		return
	}
	if p.run != s.Run {
		p.run, p.silent, p.missed = s.Run, time.Time{}, 0
	}
	p.failed = now
	if given >= full {
		p.silent = now
	}
	p.until = now.Add(min(firstRest<<min(p.missed, 8), longestRest))
	p.missed++
}

// doubted reports whether the guest of that run did not answer the last time.
func (p *patience) doubted(s *vmm.Snapshot) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.run == s.Run && p.missed > 0
}

// rests reports whether the poller should leave the guest of that run alone, which it does longer each time that the guest does not answer.
func (p *patience) rests(s *vmm.Snapshot, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.run == s.Run && now.Before(p.until)
}

// ask calls the agent of the machine in s and bounds its time. vmm.ErrTimeout, vmm.ErrNoAgent, or what call returns.
func (c *Collector) ask(ctx context.Context, e *entry, s *vmm.Snapshot, call func(context.Context, guest.Agent) error) error {
	agent := s.Agent()
	if agent == nil {
		return fmt.Errorf("cannot ask %s: %w", s.Name, vmm.ErrNoAgent)
	}
	given := e.guest.left(s, c.now(), c.guestTimeout)
	if given == 0 {
		return fmt.Errorf("cannot ask %s, it has just not answered: %w", s.Name, vmm.ErrTimeout)
	}
	bounded, cancel := context.WithTimeout(ctx, given)
	defer cancel()
	select {
	case c.calls <- struct{}{}:
		defer func() { <-c.calls }()
	case <-bounded.Done():
		return fmt.Errorf("cannot ask %s, too many guests are being asked: %w", s.Name, cmp.Or(ctx.Err(), vmm.ErrTimeout))
	}
	c.guestCalls.Add(1)
	err := call(bounded, agent)
	if ctx.Err() != nil { // nobody waits any more: this says nothing of the guest
		return fmt.Errorf("cannot ask %s: %w", s.Name, ctx.Err())
	}
	timedOut := errors.Is(err, vmm.ErrTimeout) || errors.Is(err, context.DeadlineExceeded)
	e.guest.note(s, c.now(), c.guestTimeout, given, timedOut)
	switch {
	case timedOut:
		return fmt.Errorf("cannot ask %s: %w", s.Name, vmm.ErrTimeout)
	case err != nil:
		return fmt.Errorf("cannot ask %s: %w", s.Name, err)
	}
	return nil
}
