package fs

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"banger/internal/value"
	"banger/vmm"
)

// appendEvent appends one line of `events`.
func appendEvent(b []byte, e *vmm.Event) []byte {
	b = fmt.Appendf(b, "%s %d %s %s", value.FormatTime(e.Time), e.Seq, e.VM, e.What)
	if e.Detail != "" {
		b = append(append(b, ' '), sentence(e.Detail)...)
	}
	return append(b, '\n')
}

func appendEvents(b []byte, events []vmm.Event) []byte {
	for i := range events {
		b = appendEvent(b, &events[i])
	}
	return b
}

func appendLost(b []byte, lost uint64) []byte {
	if lost == 0 {
		return b
	}
	return fmt.Appendf(b, "lost %d\n", lost)
}

// events returns the kept events of the request's VM, or of all.
func (r *request) events() []vmm.Event {
	if r.vm != nil {
		return r.vm.Events()
	}
	return r.server.o.Manager.Events()
}

func (r *request) follow() vmm.EventReader {
	if r.vm != nil {
		return r.vm.Follow()
	}
	return r.server.o.Manager.Follow()
}

// maxEventText bounds the bytes of text that lasting readers make the daemon keep. Beyond it the
// oldest three quarters are dropped. The offsets of the rest do not change.
const maxEventText = 8 << 20

// eventText is the text that all openers of one `events` read.
type eventText struct {
	mu      sync.Mutex // guards what follows
	next    vmm.EventReader
	text    []byte
	dropped int64  // bytes before text
	last    uint64 // Seq of the last line
}

func newEventText(r *request) *eventText {
	next := r.follow() // first, so that no event is missed; Seq removes duplicates
	events := r.events()
	t := &eventText{next: next, text: appendEvents(nil, events)}
	if n := len(events); n > 0 {
		t.last = events[n-1].Seq
	}
	return t
}

// now adds the events since the last call.
func (t *eventText) now() (text []byte, dropped int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.next.Ready() {
		events, lost, err := t.next.Next(context.Background(), vmm.EventHistory) // does not block
		if errors.Is(err, io.EOF) {
			break
		}
		t.text = appendLost(t.text, lost)
		for i := range events {
			if e := &events[i]; e.Seq > t.last {
				t.text, t.last = appendEvent(t.text, e), e.Seq
			}
		}
	}
	if len(t.text) > maxEventText {
		drop := len(t.text) - maxEventText/4
		drop += bytes.IndexByte(t.text[drop:], '\n') + 1
		t.text = bytes.Clone(t.text[drop:])
		t.dropped += int64(drop)
	}
	return t.text, t.dropped
}

// eventsOpen opens the events so far. A reader that stays, as tail -f, sees the file grow.
func eventsOpen(r *openRequest) (handle, error) {
	file, g := plainID(r.node), &r.server.growing
	s := g.hold(file, nil)
	if s == nil {
		s = g.hold(file, &shared{text: newEventText(&r.request)})
	}
	return &growingFile{text: s.text, end: func() { g.release(file) }}, nil
}

// eventsAttr shows the size of `events` and the time of the last one.
func eventsAttr(r *request, a *attributes) {
	events := r.events()
	if n := len(events); n > 0 {
		a.changed = events[n-1].Time
	}
	if s := r.server.growing.get(plainID(r.node)); s != nil {
		text, dropped := s.text.now()
		a.size = dropped + int64(len(text))
		return
	}
	a.size = r.server.eventSizes.of(r.node, events)
}

// eventSizes keeps the lengths of lines, so that a stat(2) renders the new ones only.
type eventSizes struct {
	mu   sync.Mutex // guards what follows
	size map[uint64]*eventSize
}

type eventSize struct {
	lengths []int // of the lines, oldest first
	bytes   int64 // sum of lengths
	last    uint64
	line    []byte // reused
}

// of returns the length of the text of events, which must be all that are kept.
func (t *eventSizes) of(node uint64, events []vmm.Event) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.size[node]
	if s == nil {
		s = new(eventSize)
		t.size[node] = s
	}
	known, _ := slices.BinarySearchFunc(events, s.last, func(e vmm.Event, last uint64) int {
		return cmp.Compare(e.Seq, last+1)
	})
	if dropped := len(s.lengths) - known; dropped > 0 {
		for _, n := range s.lengths[:dropped] {
			s.bytes -= int64(n)
		}
		s.lengths = slices.Delete(s.lengths, 0, dropped)
	}
	for i := range events[known:] {
		e := &events[known+i]
		s.line = appendEvent(s.line[:0], e)
		s.lengths = append(s.lengths, len(s.line))
		s.bytes += int64(len(s.line))
		s.last = e.Seq
	}
	return s.bytes
}

func (t *eventSizes) forget(node uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.size, node)
}

// waitEventsOpen opens the events after the open.
func waitEventsOpen(r *openRequest) (handle, error) {
	return &eventStream{next: r.follow(), turn: make(chan struct{}, 1)}, nil
}

// eventStream returns whole lines in the order of their events. Offsets mean nothing.
type eventStream struct {
	next vmm.EventReader
	turn chan struct{} // full while a read owns next and rest
	rest []byte
}

func (h *eventStream) read(c *call, p []byte, _ int64) ([]byte, error) {
	ctx, cancel := c.patience()
	defer cancel()
	select {
	case h.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, c.again(ctx.Err())
	}
	defer func() { <-h.turn }()
	if len(h.rest) == 0 {
		events, lost, err := h.next.Next(ctx, 1) // one line a read: the others stay with the reader
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, c.again(err)
		}
		h.rest = appendEvents(appendLost(h.rest[:0], lost), events)
	}
	// head and a shell's read seek back over surplus bytes, so a read returns one line.
	n := min(len(p), bytes.IndexByte(h.rest, '\n')+1)
	n = copy(p, h.rest[:n])
	h.rest = h.rest[n:]
	return p[:n], nil
}

func (h *eventStream) close() {}
