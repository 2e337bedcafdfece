package collector

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"banger/vmm"
)

// epoch is the part of a VM's life that an answer belongs to: what was collected in another is no answer now.
type epoch struct {
	run   uint64
	state vmm.State
	ready bool
	named bool // by name, not address, `ports` tells where to connect
}

func epochOf(s *vmm.Snapshot) epoch { return epoch{s.Run, s.State, s.Ready, s.Named} }

// spread is the part of max_age by which answers are collected early by chance, so that what was read together spreads.
const spread = 1.0 / 32

// cached is the last answer of one kind of one VM, and the collection in flight if there is one. Without an answer it is empty, but for its meter.
// Its lock is never held while something is collected.
type cached[T any] struct {
	meter *meter        // immutable
	due   *atomic.Int64 // immutable: when the poller looks at the entry again, see entry

	mu sync.Mutex
	// guarded by mu
	epoch  epoch
	value  *T
	begun  time.Time     // when the collection of value was
	at     time.Time     // when value was complete
	took   time.Duration // for value
	chance float64       // 0 to 1, anew for each value
	tried  time.Time     // when the last collection ended, well or not
	read   time.Time     // when somebody last asked
	flight *flight[T]
}

// flight is one collection, shared by all who wait for it.
type flight[T any] struct {
	cancel  context.CancelFunc
	begun   time.Time
	waiting int // guarded by the cached's mu; who is last to leave cancels

	done  chan struct{} // closed when value and err are final
	value *T
	err   error
}

// init is for a new entry.
func (k *cached[T]) init(m *meter, due *atomic.Int64) { k.meter, k.due = m, due }

// get gives an answer of the epoch no older than maxAge, collecting if need be. When ctx ends first its error is returned;
// the collection goes on for the others, and ends only when nobody waits for it any more.
// An error reaches all who wait and is not kept: the next to ask collects again.
func (k *cached[T]) get(ctx context.Context, c *Collector, ep epoch, maxAge time.Duration, collect func(context.Context) (*T, error)) (*T, error) {
	k.mu.Lock()
	now := c.now()
	if now.Sub(k.read) > keepWarm {
		k.due.Store(0) // this kind is not yet among those that are kept warm
	}
	k.read = now
	k.enter(ep)
	if k.value != nil && now.Sub(k.at) <= maxAge {
		v := k.value
		k.mu.Unlock()
		k.meter.hits.Add(1)
		return v, nil
	}
	f := k.join(c, now, collect)
	k.mu.Unlock()
	if f == nil {
		return nil, errClosed
	}
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		k.leave(f)
		return nil, ctx.Err()
	}
}

// enter forgets what belongs to another epoch. k.mu is held.
func (k *cached[T]) enter(ep epoch) {
	if k.epoch != ep {
		// A collection still in flight ends for those who wait for it, and is not kept.
		k.epoch, k.value, k.flight, k.tried = ep, nil, nil, time.Time{}
	}
}

// join takes part in the collection in flight, or begins one; nil when the collector is closed. k.mu is held.
func (k *cached[T]) join(c *Collector, now time.Time, collect func(context.Context) (*T, error)) *flight[T] {
	if f := k.flight; f != nil {
		f.waiting++
		return f
	}
	f := &flight[T]{begun: now, waiting: 1, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(c.ctx)
	f.cancel = cancel
	if !c.start(func() { k.fly(ctx, c, f, collect) }) {
		cancel()
		return nil
	}
	k.flight = f
	return f
}

// fly collects. It is the one place that counts collections and failures.
func (k *cached[T]) fly(ctx context.Context, c *Collector, f *flight[T], collect func(context.Context) (*T, error)) {
	defer f.cancel()
	k.meter.collections.Add(1)
	v, err := collect(ctx)
	now := c.now()
	k.meter.ended(now.Sub(f.begun), err)
	if err != nil {
		v = nil
	}
	k.mu.Lock()
	f.value, f.err = v, err
	if k.flight == f {
		k.flight = nil
		k.tried = now
		if err == nil {
			k.value, k.begun, k.at = v, f.begun, k.tried
			k.took, k.chance = k.at.Sub(f.begun), rand.Float64()
		} else {
			k.value = nil
		}
	}
	k.mu.Unlock()
	close(f.done)
}

// outdate makes who asks from now on get nothing that was begun before t, when something newer was seen.
func (k *cached[T]) outdate(t time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.begun.Before(t) {
		k.value = nil
	}
	if k.flight != nil && k.flight.begun.Before(t) {
		k.flight = nil // it ends for those who wait for it, and is not kept
	}
}

// leave gives up waiting for f.
func (k *cached[T]) leave(f *flight[T]) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f.waiting--
	if f.waiting == 0 {
		f.cancel()
		if k.flight == f {
			k.flight = nil // who comes now must not wait for a cancelled one
		}
	}
}

// known gives the answer of the epoch, however old, nil if there is none.
func (k *cached[T]) known(ep epoch) *T {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.epoch != ep {
		return nil
	}
	return k.value
}

// warm begins a collection when the answer was read lately and will soon be too old. It waits for nothing but the lane's slot, and gives
// when to look again; the zero time if nobody read it lately.
func (k *cached[T]) warm(c *Collector, ep epoch, now time.Time, maxAge time.Duration, l lane, collect func(context.Context) (*T, error)) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.read.IsZero() || now.Sub(k.read) > keepWarm {
		return time.Time{}
	}
	k.enter(ep)
	due := k.tried.Add(maxAge / 2) // after a failure
	if k.value != nil {
		// At the last look from which it ends before the answer is too old.
		lead := min(2*k.took+c.pace()*9/8, maxAge/2)
		due = k.at.Add(maxAge - lead - time.Duration(k.chance*float64(maxAge)*spread))
	}
	switch {
	case k.flight != nil:
	case now.Before(due):
		return due
	case !k.beginLocked(c, now, l, collect):
		return now // as soon as there is a slot
	}
	return now.Add(maxAge / 2) // it has ended then, mostly
}

// begin begins a collection for nobody in particular unless one is under way or no slot is free.
func (k *cached[T]) begin(c *Collector, ep epoch, now time.Time, l lane, collect func(context.Context) (*T, error)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.enter(ep)
	if k.flight == nil {
		k.beginLocked(c, now, l, collect)
	}
}

// beginLocked reports whether there was a slot.
func (k *cached[T]) beginLocked(c *Collector, now time.Time, l lane, collect func(context.Context) (*T, error)) bool {
	if !l.take() {
		return false
	}
	f := k.join(c, now, func(ctx context.Context) (*T, error) {
		defer l.release()
		return collect(ctx)
	})
	if f == nil {
		l.release()
	}
	return true
}

// want counts as a read of somebody who is told of changes.
func (k *cached[T]) want(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.read = now
}
