package vmm

import (
	"context"
	"io"
	"slices"
	"sync"
)

// eventLog keeps the last EventHistory events and wakes its readers.
type eventLog struct {
	mu     sync.Mutex
	events []Event
	next   uint64        // the number of the next event
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

// end lets readers return io.EOF after the last event.
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
	return &eventReader{l, l.next}
}

// eventReader implements EventReader.
type eventReader struct {
	log  *eventLog
	next uint64 // the number of the next event to return; guarded by log.mu
}

func (r *eventReader) Ready() bool {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	return r.next < r.log.next || r.log.ended
}

func (r *eventReader) Next(ctx context.Context, most int) ([]Event, uint64, error) {
	for {
		events, lost, wake := r.poll(most)
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

// poll returns at most that many events, or the channel to wait for, or neither after the last
// event.
func (r *eventReader) poll(most int) (events []Event, lost uint64, wake <-chan struct{}) {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.next - r.next; n > 0 {
		kept := l.kept()
		if have := uint64(len(kept)); n > have {
			lost, n = n-have, have
		}
		events := kept[uint64(len(kept))-n:]
		events = events[:min(len(events), most)]
		r.next = l.next - n + uint64(len(events))
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
