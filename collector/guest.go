package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
)

// guestFigures are what an agent answered. They cost guest and host far more than the figures of
// the process, so that fresh stats may have older ones.
type guestFigures struct {
	epoch epoch
	at    time.Time
	stats *guest.Stats
}

var _ = addSource(source{
	bound: guestTimeout, idle: insideKnown, fill: fillInside, metrics: insides,
})

var insides = []Metric{
	inside("memory_size_bytes", "Memory as the guest counts it.",
		func(g *guest.Stats) float64 { return float64(g.MemTotal) }),
	inside("memory_available_bytes", "Memory that the guest could give to programs.",
		func(g *guest.Stats) float64 { return float64(g.MemAvailable) }),
	inside("load1", "The guest's load, averaged over a minute.",
		func(g *guest.Stats) float64 { return g.Load1 }),
	inside("processes", "Processes in the guest.",
		func(g *guest.Stats) float64 { return float64(g.Procs) }),
	inside("uptime_seconds", "Time since the guest's kernel started.",
		func(g *guest.Stats) float64 { return g.Uptime }),
	inside("filesystem_used_bytes", "Used on the guest's file systems.",
		func(g *guest.Stats) float64 { return onFilesystem(g, g.DiskUsed) }),
	inside("filesystem_size_bytes", "Size of the guest's file systems.",
		func(g *guest.Stats) float64 { return onFilesystem(g, g.DiskTotal) }),
}

// inside is a metric of the guest's own, which may have made it up.
func inside(name, help string, get func(*guest.Stats) float64) Metric {
	value := func(s *Stats) (float64, bool) {
		if s.Guest == nil {
			return 0, false
		}
		value := get(s.Guest)
		return value, !math.IsNaN(value) && !math.IsInf(value, 0)
	}
	return Metric{Name: "banger_vm_guest_" + name, Help: help, Value: value}
}

// onFilesystem is not a number for a guest without file systems.
func onFilesystem(g *guest.Stats, bytes int64) float64 {
	if g.DiskTotal <= 0 {
		return math.NaN()
	}
	return float64(bytes)
}

// insideKnown reports whether stats have the guest's figures, or none, without asking it.
func insideKnown(t *task) bool {
	if !ready(t.s) || t.rests() {
		return true
	}
	t.known = t.inside()
	return t.known != nil
}

// rests reports whether the collection leaves the guest alone.
func (t *task) rests() bool { return t.byPoller && t.e.guest.rests(t.s, t.c.now()) }

// inside returns the guest's figures if they are young enough and it still answers.
func (t *task) inside() *guest.Stats {
	f := t.e.inside.Load()
	if f == nil || f.epoch != epochOf(t.s) || t.e.guest.doubted(t.s) ||
		t.c.now().Sub(f.at) > (guestShare-1)*t.c.statsMaxAge {
		return nil
	}
	return f.stats
}

func fillInside(ctx context.Context, t *task, st *Stats) {
	if t.atOnce { // to look again could find that the figures are too old now, and ask
		st.Guest = t.known
		return
	}
	if !ready(t.s) || t.rests() {
		return
	}
	if st.Guest = t.inside(); st.Guest != nil {
		return
	}
	err := t.ask(ctx, func(ctx context.Context, g guest.Agent) error {
		answer, err := g.Stats(ctx)
		if err == nil {
			st.Guest = &answer
			t.e.inside.Store(&guestFigures{epochOf(t.s), t.c.now(), &answer})
		}
		return err
	})
	if err != nil {
		t.c.log.Debug("no stats from the guest", "vm", t.s.Name, "err", err)
	}
}

// patience remembers that a guest did not answer. Otherwise a reader of many files of many VMs
// would wait the full time for each file of each hung guest. For a moment all readers get the
// timeout at once. Then the guest has a moment only, until it answers or some time has passed.
type patience struct {
	mu sync.Mutex
	// guarded by mu
	run    uint64
	silent time.Time // the last time that no answer came in full time
	failed time.Time // the last time that none came
	missed int       // the number of those in a row
	until  time.Time // the poller leaves the guest alone
}

// left returns how long the guest of that run may need now; 0: it is not to be asked.
func (p *patience) left(s *vmm.Snapshot, now time.Time, full time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.run == s.Run && !p.failed.IsZero() && now.Sub(p.failed) < guestSilence:
		return 0
	case !s.Ready && !s.Since.IsZero():
		// The manager has been asking since the start: a guest that boots has the rest of the time.
		return min(full, max(full-now.Sub(s.Since), guestBriefly))
	case p.run == s.Run && !p.silent.IsZero() && now.Sub(p.silent) < guestDoubt:
		return min(full, guestBriefly)
	}
	return full
}

// note records the end of a call that had the time allowed.
func (p *patience) note(
	s *vmm.Snapshot, now time.Time, full, allowed time.Duration, timedOut bool,
) {
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
	if allowed >= full {
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

// rests reports whether the poller should leave the guest of that run alone. It does so for longer
// with each answer that does not come.
func (p *patience) rests(s *vmm.Snapshot, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.run == s.Run && now.Before(p.until)
}

// ask calls the VM's agent and bounds its time. It returns vmm.ErrTimeout, vmm.ErrNoAgent, or the
// error of call.
func (t *task) ask(ctx context.Context, call func(context.Context, guest.Agent) error) error {
	c, s, p := t.c, t.s, &t.e.guest
	agent := s.Agent()
	if agent == nil {
		return fmt.Errorf("cannot ask %s: %w", s.Name, vmm.ErrNoAgent)
	}
	allowed := p.left(s, c.now(), c.guestTimeout)
	if allowed == 0 {
		return fmt.Errorf("cannot ask %s, it has just not answered: %w", s.Name, vmm.ErrTimeout)
	}
	bounded, cancel := context.WithTimeout(ctx, allowed)
	defer cancel()
	select {
	case c.calls <- struct{}{}:
		defer func() { <-c.calls }()
	case <-bounded.Done():
		return fmt.Errorf("cannot ask %s, too many guests are being asked: %w", s.Name,
			cmp.Or(ctx.Err(), vmm.ErrTimeout))
	}
	c.guestCalls.Add(1)
	err := call(bounded, agent)
	if ctx.Err() != nil { // nobody waits any more: this proves nothing about the guest
		return fmt.Errorf("cannot ask %s: %w", s.Name, ctx.Err())
	}
	timedOut := errors.Is(err, vmm.ErrTimeout) || errors.Is(err, context.DeadlineExceeded)
	p.note(s, c.now(), c.guestTimeout, allowed, timedOut)
	switch {
	case timedOut:
		return fmt.Errorf("cannot ask %s: %w", s.Name, vmm.ErrTimeout)
	case err != nil:
		return fmt.Errorf("cannot ask %s: %w", s.Name, err)
	}
	return nil
}
