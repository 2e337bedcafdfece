// Package slots bounds what users do side by side, so that nobody takes all of it. It imports no
// other package of banger.
package slots

import (
	"context"
	"slices"
	"sync"
)

// Slots are places for work of users. Their methods may be called from many goroutines.
type Slots struct {
	total, each, shared int // immutable

	mu    sync.Mutex // guards the rest
	used  int
	of    map[uint32]int // by uid
	queue []*waiter
}

type waiter struct {
	uid  uint32
	slot chan struct{} // closed when the slot is the waiter's
}

// New returns total slots. A uid has at most each of them, and more than one only while fewer than
// shared are in use.
func New(total, each, shared int) *Slots {
	return &Slots{total: total, each: each, shared: shared, of: make(map[uint32]int)}
}

func (s *Slots) takeLocked(uid uint32) bool {
	has := s.of[uid]
	if s.used >= s.total || has >= s.each || has > 0 && s.used >= s.shared {
		return false
	}
	s.used++
	s.of[uid]++
	return true
}

// Try takes a slot if the uid may have one now.
func (s *Slots) Try(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takeLocked(uid)
}

// Wait takes a slot as soon as the uid may have one. It returns the error of ctx if that ends
// first.
func (s *Slots) Wait(ctx context.Context, uid uint32) error {
	s.mu.Lock()
	if s.takeLocked(uid) {
		s.mu.Unlock()
		return nil
	}
	w := &waiter{uid, make(chan struct{})}
	s.queue = append(s.queue, w)
	s.mu.Unlock()
	select {
	case <-w.slot:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	i := slices.Index(s.queue, w)
	if i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
	}
	s.mu.Unlock()
	if i < 0 { // End has just passed the slot on
		s.End(uid)
	}
	return ctx.Err()
}

// End returns a slot. The longest waiter that may have it gets it.
func (s *Slots) End(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
	if s.of[uid]--; s.of[uid] == 0 {
		delete(s.of, uid)
	}
	s.queue = slices.DeleteFunc(s.queue, func(w *waiter) bool {
		ok := s.takeLocked(w.uid)
		if ok {
			close(w.slot)
		}
		return ok
	})
}
