package vmm

import (
	"context"
	"slices"
	"sync"
)

// Turns bounds what users do side by side, so that nobody has all of it.
type Turns struct {
	total, each, shared int // immutable

	mu    sync.Mutex // guards what follows
	used  int
	held  map[uint32]int
	queue []*turnWaiter
}

type turnWaiter struct {
	uid  uint32
	turn chan struct{} // closed when it is its turn
}

// NewTurns returns total turns. A uid has at most each of them, and more than one only while fewer
// than shared are in use.
func NewTurns(total, each, shared int) *Turns {
	return &Turns{total: total, each: each, shared: shared, held: make(map[uint32]int)}
}

func (t *Turns) takeLocked(uid uint32) bool {
	has := t.held[uid]
	if t.used >= t.total || has >= t.each || has > 0 && t.used >= t.shared {
		return false
	}
	t.used++
	t.held[uid]++
	return true
}

// Try takes a turn if there is one for the uid.
func (t *Turns) Try(uid uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.takeLocked(uid)
}

// Wait takes a turn when there is one for the uid. Its error is that of ctx.
func (t *Turns) Wait(ctx context.Context, uid uint32) error {
	t.mu.Lock()
	if t.takeLocked(uid) {
		t.mu.Unlock()
		return nil
	}
	w := &turnWaiter{uid, make(chan struct{})}
	t.queue = append(t.queue, w)
	t.mu.Unlock()
	select {
	case <-w.turn:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	i := slices.Index(t.queue, w)
	if i >= 0 {
		t.queue = slices.Delete(t.queue, i, i+1)
	}
	t.mu.Unlock()
	if i < 0 { // it was given the turn meanwhile
		t.End(uid)
	}
	return ctx.Err()
}

// End gives a turn back. Who waits longest and may have one gets it.
func (t *Turns) End(uid uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used--
	if t.held[uid]--; t.held[uid] == 0 {
		delete(t.held, uid)
	}
	t.queue = slices.DeleteFunc(t.queue, func(w *turnWaiter) bool {
		ok := t.takeLocked(w.uid)
		if ok {
			close(w.turn)
		}
		return ok
	})
}
