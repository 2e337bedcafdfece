package vmm

import (
	"context"
	"io"
	"slices"
	"sync"
)

// eventLog keeps the last EventHistory events and wakes those who follow.
type eventLog struct {
	mu     sync.Mutex
	events []Event
	next   uint64        // how many were ever added; the newest has the number next-1
	wake   chan struct{} // closed at the next event, nil while nobody waits
	ended  bool
}

func (l *eventLog) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.events) >= 2*EventHistory {
		l.events = append(l.events[:0:0], l.events[len(l.events)-EventHistory+1:]...)
	}
	l.events = append(l.events, e)
	l.next++
	l.rouse()
}

// end makes readers that have read everything get io.EOF.
func (l *eventLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.rouse()
}

func (l *eventLog) rouse() {
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
}

func (l *eventLog) kept() []Event {
	return l.events[max(0, len(l.events)-EventHistory):]
}

func (l *eventLog) all() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.kept())
}

func (l *eventLog) follow() *eventReader {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &eventReader{log: l, at: l.next}
}

// eventReader is one EventReader; it is used by one goroutine at a time.
type eventReader struct {
	log *eventLog
	at  uint64 // the number of the next event to give; guarded by log.mu
}

func (r *eventReader) Ready() bool {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	return r.at < r.log.next || r.log.ended
}

func (r *eventReader) Next(ctx context.Context, most int) ([]Event, uint64, error) {
	for {
		events, lost, wake := r.take(most)
		if events != nil {
			return events, lost, nil
		}
		if wake == nil {
			return nil, 0, io.EOF
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// take gives what there is, so many at most, or the channel to wait on, or neither at the end.
func (r *eventReader) take(most int) (events []Event, lost uint64, wake <-chan struct{}) {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.next - r.at; n > 0 {
		kept := l.kept()
		if have := uint64(len(kept)); n > have {
			lost, n = n-have, have
		}
		events := kept[uint64(len(kept))-n:]
		events = events[:min(len(events), most)]
		r.at = l.next - n + uint64(len(events))
		return slices.Clone(events), lost, nil
	}
	if l.ended {
		return nil, 0, nil
	}
	if l.wake == nil {
		l.wake = make(chan struct{})
	}
	return nil, 0, l.wake
}
