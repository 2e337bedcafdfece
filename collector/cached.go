package collector

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"banger/vmm"
)

// epoch is the part of a VM's life that an answer belongs to. It answers no read of another epoch.
type epoch struct {
	run   uint64
	state vmm.State
	ready bool
	named bool // the endpoints of `ports` hold the guest's name, not its address
}

func epochOf(s *vmm.Snapshot) epoch { return epoch{s.Run, s.State, s.Ready, s.Named} }

// spread is the part of max_age by which answers are collected early by chance, so that
// collections of VMs that were read together spread.
const spread = 1.0 / 32

// cached is the last answer of one kind about one VM, and the collection in flight. Its zero value
// is empty. Its lock is never held during a collection.
type cached struct {
	mu sync.Mutex
	// guarded by mu
	epoch  epoch
	value  any           // nil for none
	begun  time.Time     // when the collection of value began
	ended  time.Time     // when it ended
	took   time.Duration // the difference
	chance float64       // 0 to 1, anew for each value
	tried  time.Time     // when the last collection ended, well or not
	read   time.Time     // the last read
	flight *flight
}

// flight is one collection, shared by all its waiters.
type flight struct {
	cancel  context.CancelFunc // nil: it cannot block
	begun   time.Time
	waiters int // guarded by the cached's mu; the last to leave cancels

	done  chan struct{} // closed when value and err are final
	value any
	err   error
}

// get returns an answer of the task's epoch no older than maxAge, and collects one if need be. It
// returns ctx's error if ctx ends first. The collection then goes on for its other waiters, and
// ends with the last of them. All waiters get its error, which is not kept.
func (k *cached) get(ctx context.Context, t *task, maxAge time.Duration) (any, error) {
	now := t.c.now()
	k.mu.Lock()
	cold := k.wantLocked(now)
	k.enter(epochOf(t.s))
	if k.value != nil && now.Sub(k.ended) <= maxAge {
		value := k.value
		k.mu.Unlock()
		t.c.meters[t.index].hits.Add(1)
		t.c.warmFromNow(t, cold)
		return value, nil
	}
	f := k.join(t, now)
	k.mu.Unlock()
	if f == nil {
		return nil, errClosed
	}
	t.c.warmFromNow(t, cold)
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		k.leave(f)
		return nil, ctx.Err()
	}
}

// want counts as a read. It reports whether the last one is so old that the poller forgot it.
func (k *cached) want(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.wantLocked(now)
}

func (k *cached) wantLocked(now time.Time) (cold bool) {
	cold = now.Sub(k.read) > keepWarm
	k.read = now
	return cold
}

// idle reports whether the last read is so long ago that the answer is not kept warm. The next read
// is then the first one, even if it looked at its clock before now.
func (k *cached) idle(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	idle := now.Sub(k.read) > keepWarm
	if idle {
		k.read = time.Time{}
	}
	return idle
}

// enter drops the answer of another epoch. A collection still in flight ends for its waiters, and
// its result is not kept. k.mu is held.
func (k *cached) enter(ep epoch) {
	if k.epoch != ep {
		k.epoch, k.value, k.flight, k.tried = ep, nil, nil, time.Time{}
	}
}

// join joins the collection in flight, or begins one in a goroutine. It returns nil after Close.
// k.mu is held.
func (k *cached) join(t *task, now time.Time) *flight {
	if k.flight != nil {
		k.flight.waiters++
		return k.flight
	}
	ctx, cancel := context.WithCancel(t.c.ctx)
	f := &flight{cancel: cancel, begun: now, waiters: 1, done: make(chan struct{})}
	if !t.c.start(func() {
		defer cancel()
		k.fly(ctx, t, f)
		if t.slots != nil {
			<-t.slots
		}
	}) {
		cancel()
		return nil
	}
	k.flight = f
	return f
}

// fly collects, and keeps the answer unless its epoch has ended.
func (k *cached) fly(ctx context.Context, t *task, f *flight) {
	value, ended, err := t.run(ctx, f.begun)
	k.mu.Lock()
	f.value, f.err = value, err
	if k.flight == f {
		k.flight, k.tried, k.value = nil, ended, value
		if err == nil {
			k.begun, k.ended, k.took, k.chance = f.begun, ended, ended.Sub(f.begun), rand.Float64()
		}
	}
	k.mu.Unlock()
	close(f.done)
}

// outdate drops an answer whose collection began before t, and lets no later reader wait for one.
func (k *cached) outdate(t time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.begun.Before(t) {
		k.value = nil
	}
	if k.flight != nil && k.flight.begun.Before(t) {
		k.flight = nil // it ends for its waiters
	}
}

// leave ends one wait for f.
func (k *cached) leave(f *flight) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f.waiters--; f.waiters > 0 || f.cancel == nil {
		return
	}
	f.cancel()
	if k.flight == f {
		k.flight = nil // later readers must not wait for a cancelled one
	}
}

// known returns the answer of the epoch, however old; nil if there is none.
func (k *cached) known(ep epoch) any {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.epoch != ep {
		return nil
	}
	return k.value
}

// warm collects when the answer will soon be too old, and returns when to look again. It waits for
// a slot of the lane at most.
func (k *cached) warm(t *task, now time.Time, l lane) time.Time {
	maxAge := t.maxAge(t.c)
	k.mu.Lock()
	k.enter(epochOf(t.s))
	due := k.due(t.c.pace(), maxAge)
	switch {
	case k.flight != nil:
		due = now.Add(maxAge / 2)
	case now.Before(due):
	case t.quick != nil && t.quick(t):
		f := &flight{begun: now, waiters: 1, done: make(chan struct{})}
		k.flight, t.atOnce = f, true
		k.mu.Unlock()
		k.fly(t.c.ctx, t, f) // a goroutine would cost more than the collection
		k.mu.Lock()
		due = k.due(t.c.pace(), maxAge)
	case k.begin(t, now, l):
		due = now.Add(maxAge / 2) // most have ended by then
	default:
		due = now // as soon as there is a slot
	}
	k.mu.Unlock()
	return due
}

// due returns when to collect the next answer. k.mu is held.
func (k *cached) due(pace, maxAge time.Duration) time.Time {
	if k.value == nil {
		return k.tried.Add(maxAge / 2) // after a failure
	}
	// The last look from which a collection ends before the answer is too old.
	lead := min(2*k.took+pace*9/8, maxAge/2)
	return k.ended.Add(maxAge - lead - time.Duration(k.chance*float64(maxAge)*spread))
}

// collect collects without a waiter, unless a collection is in flight or the lane has no slot.
func (k *cached) collect(t *task, now time.Time, l lane) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.enter(epochOf(t.s))
	if k.flight == nil {
		k.begin(t, now, l)
	}
}

// begin collects without a waiter and reports whether the lane had a slot. k.mu is held, and
// nothing is in flight.
func (k *cached) begin(t *task, now time.Time, l lane) bool {
	if !l.acquire() {
		return false
	}
	t.slots = l.slots
	if k.join(t, now) == nil {
		<-l.slots
	}
	return true
}
