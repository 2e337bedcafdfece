package collector

import "sync"

// wheelSlots is how many ticks ahead an entry can stand. One that is due later is looked at early.
const wheelSlots = 64

// wheel holds the entries that the poller keeps warm by the tick at which they are due, so that a
// tick costs nothing for the others. Its zero value is empty.
type wheel struct {
	mu sync.Mutex
	// guarded by mu, as is tick of the entries
	slots [wheelSlots][]*entry // an entry is at its tick; older places of it are ignored
	next  int64                // the first tick that take has not returned
	count int                  // entries
}

// add makes e due at tick, or at the next one if that is past, unless it is due earlier.
func (w *wheel) add(e *entry, tick int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	tick = min(max(tick, w.next, 1), w.next+wheelSlots-1)
	if e.tick != 0 && e.tick <= tick {
		return
	}
	if e.tick == 0 {
		w.count++
	}
	e.tick = tick
	w.slots[tick%wheelSlots] = append(w.slots[tick%wheelSlots], e)
}

// take removes the entries that are due at tick or earlier, and appends them to due.
func (w *wheel) take(tick int64, due []*entry) []*entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	for t := max(w.next, tick-wheelSlots+1, 0); t <= tick; t++ {
		slot := w.slots[t%wheelSlots]
		for _, e := range slot {
			if e.tick != 0 && e.tick <= tick {
				e.tick = 0
				w.count--
				due = append(due, e)
			}
		}
		clear(slot)
		w.slots[t%wheelSlots] = slot[:0]
	}
	w.next = max(w.next, tick+1)
	return due
}

// remove makes e due no more.
func (w *wheel) remove(e *entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.tick != 0 {
		e.tick = 0
		w.count--
	}
}

// empty reports whether nothing is kept warm.
func (w *wheel) empty() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count == 0
}
