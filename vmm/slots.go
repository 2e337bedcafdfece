package vmm

import (
	"context"
	"slices"
	"sync"
)

// Slots bounds what users do side by side, so that nobody has all of it.
type Slots struct {
	total, each, shared int // immutable

	mu    sync.Mutex // guards what follows
	used  int
	held  map[uint32]int
	queue []*slotWaiter
}

type slotWaiter struct {
	uid  uint32
	slot chan struct{} // closed when the slot is the waiter's
}

// NewSlots returns total slots. A uid has at most each of them, and more than one only while fewer
// than shared are in use.
func NewSlots(total, each, shared int) *Slots {
	return &Slots{total: total, each: each, shared: shared, held: make(map[uint32]int)}
}

func (t *Slots) takeLocked(uid uint32) bool {
	has := t.held[uid]
	if t.used >= t.total || has >= t.each || has > 0 && t.used >= t.shared {
		return false
	}
	t.used++
	t.held[uid]++
	return true
}

// Try takes a slot if there is one for the uid.
func (t *Slots) Try(uid uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.takeLocked(uid)
}

// Wait takes a slot when there is one for the uid. Its error is that of ctx.
func (t *Slots) Wait(ctx context.Context, uid uint32) error {
	t.mu.Lock()
	if t.takeLocked(uid) {
		t.mu.Unlock()
		return nil
	}
	w := &slotWaiter{uid, make(chan struct{})}
	t.queue = append(t.queue, w)
	t.mu.Unlock()
	select {
	case <-w.slot:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	i := slices.Index(t.queue, w)
	if i >= 0 {
		t.queue = slices.Delete(t.queue, i, i+1)
	}
	t.mu.Unlock()
	if i < 0 { // it was given the slot meanwhile
		t.End(uid)
	}
	return ctx.Err()
}

// End gives a slot back. Who waits longest and may have one gets it.
func (t *Slots) End(uid uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used--
	if t.held[uid]--; t.held[uid] == 0 {
		delete(t.held, uid)
	}
	t.queue = slices.DeleteFunc(t.queue, func(w *slotWaiter) bool {
		ok := t.takeLocked(w.uid)
		if ok {
			close(w.slot)
		}
		return ok
	})
}
