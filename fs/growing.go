package fs

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"banger/internal/host"
	"banger/internal/printable"
	"banger/internal/value"
	"banger/vmm"
)

// Files that grow at their end and are cut at their head: `log`, `console`, `events`. stat(2) tells one size to all who have
// the file open (GETATTR names no open file), and tail -f goes by it; so their offsets count from one base for as long as anybody has the
// file open, and it is chosen anew when nobody has.

// growing are the bases of the files that are open now, by their plain numbers.
type growing struct {
	mu   sync.Mutex // guards open and what is in it
	open map[uint64]*shared
}

// shared is what all who have a growing file open share.
type shared struct {
	users int
	base  int64      // of a file of the host
	text  *eventText // of events
}

// hold gives what the file's users share, s if there are none yet; nil for neither. The caller releases what is not nil.
func (g *growing) hold(file uint64, s *shared) *shared {
	g.mu.Lock()
	defer g.mu.Unlock()
	if known := g.open[file]; known != nil {
		s = known
	}
	if s != nil {
		g.open[file] = s
		s.users++
	}
	return s
}

func (g *growing) release(file uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.open[file]
	if s.users--; s.users == 0 {
		delete(g.open, file)
	}
}

// held gives the file's if anybody has it open, else nil.
func (g *growing) held(file uint64) *shared {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open[file]
}

// maxLogs bounds the logs and consoles that one user has open, each of which has a descriptor of the
// daemon's.
const maxLogs = 1024

// logOf opens a file of the VM's directory on the host.
func logOf(name string) func(*request, bool) (handle, error) {
	return func(r *request, _ bool) (handle, error) {
		uid := r.uid
		if !r.isRoot() && !r.server.logs.acquire(uint64(uid)) {
			return nil, fmt.Errorf("uid %d has %d logs and consoles open: close some: %w",
				uid, maxLogs, syscall.EDQUOT)
		}
		t, err := host.OpenTail(filepath.Join(r.snap().Dir, name))
		if err != nil {
			r.closedLog(uid)
			return nil, err
		}
		file := plainID(r.node)
		t.SetBase(r.server.growing.hold(file, &shared{base: t.Base()}).base)
		// A VMM that its guest has taken over writes to its log what the guest wants. A console is the
		// guest's own.
		end := func() { r.closedLog(uid) }
		return &tail{Tail: t, server: r.server, file: file, masked: name == vmm.LogFile, end: end}, nil
	}
}

// closedLog gives back what logOf took.
func (r *request) closedLog(uid uint32) {
	if !r.isRoot() {
		r.server.logs.release(uint64(uid))
	}
}

func logSize(name string) func(*request) (int64, time.Time) {
	return func(r *request) (int64, time.Time) {
		base := int64(-1)
		if s := r.server.growing.held(plainID(r.node)); s != nil {
			base = s.base
		}
		return host.TailSize(filepath.Join(r.snap().Dir, name), base)
	}
}

// place follows one reader through a file that is cut at its head.
type place struct {
	next    int64 // where the last read ended
	skipped int64 // what was cut before a reader that goes on came to it
}

// find gives the place in the file of a read at off. kept gives an offset, or where that was cut the first one behind it.
// Who seeks finds things where the file's size says that they are; who begins or goes on never meets what was cut.
func (p *place) find(off int64, kept func(int64) (int64, error)) (int64, error) {
	if off != p.next {
		p.skipped = 0
	}
	if off == p.next || off == 0 {
		at, err := kept(off + p.skipped)
		if err != nil {
			return 0, err
		}
		p.skipped = at - off
	}
	return off + p.skipped, nil
}

// tail reads a file of the host that grows.
type tail struct {
	*host.Tail
	server *Server
	file   uint64
	masked bool // no control characters are shown
	end    func()

	mu    sync.Mutex // guards Tail and place
	place place
}

func (t *tail) read(_ *request, n int, off int64) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, err := t.place.find(off, t.Kept)
	if err != nil {
		return nil, err
	}
	p := make([]byte, n)
	n, err = t.ReadAt(p, at)
	if err == io.EOF {
		err = nil
	}
	t.place.next = off + int64(n)
	if t.masked {
		printable.Mask(p[:n])
	}
	return p[:n], err
}

func (t *tail) close() {
	t.Tail.Close()
	t.server.growing.release(t.file)
	t.end()
}

// appendEvent adds one line of `events`.
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

// maxEventText bounds the text of events that readers who stay make the daemon hold, bytes. Beyond it the
// oldest three quarters are dropped; the offsets of what is left stay as they are.
const maxEventText = 8 << 20

// eventText is what all who have an `events` open read from.
type eventText struct {
	mu      sync.Mutex // guards what follows
	next    vmm.EventReader
	text    []byte
	dropped int64  // bytes before text
	last    uint64 // Seq of the last line
}

func newEventText(r *request) *eventText {
	next := r.follow() // before the lines, so that none is missed; those of both are told by Seq
	events := r.events()
	t := &eventText{next: next, text: appendEvents(nil, events)}
	if n := len(events); n > 0 {
		t.last = events[n-1].Seq
	}
	return t
}

// now gives the text with all events so far, and how much of it was dropped before. What is given is not changed afterwards.
func (t *eventText) now() (text []byte, dropped int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.next.Ready() {
		events, lost, err := t.next.Next(context.Background(), vmm.EventHistory) // is ready
		if errors.Is(err, io.EOF) {
			break
		}
		if lost > 0 {
			t.text = fmt.Appendf(t.text, "lost %d\n", lost)
		}
		for i := range events {
			if e := &events[i]; e.Seq > t.last {
				t.text, t.last = appendEvent(t.text, e), e.Seq
			}
		}
	}
	if len(t.text) > maxEventText {
		at := len(t.text) - maxEventText/4
		at += bytes.IndexByte(t.text[at:], '\n') + 1
		t.text = bytes.Clone(t.text[at:])
		t.dropped += int64(at)
	}
	return t.text, t.dropped
}

// eventsOpen gives the events so far; a reader that stays, as tail -f, sees it grow.
func eventsOpen(r *request, _ bool) (handle, error) {
	file := plainID(r.node)
	s := r.server.growing.hold(file, nil)
	if s == nil {
		s = r.server.growing.hold(file, &shared{text: newEventText(r)})
	}
	return &eventFile{text: s.text, server: r.server, file: file}, nil
}

type eventFile struct {
	text   *eventText
	server *Server
	file   uint64

	mu    sync.Mutex // guards place
	place place
}

func (h *eventFile) read(r *request, n int, off int64) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	text, dropped := h.text.now()
	at, err := h.place.find(off, func(off int64) (int64, error) { return max(off, dropped), nil })
	if err != nil {
		return nil, err
	}
	var p []byte
	if at < dropped {
		p = make([]byte, min(int64(n), dropped-at)) // as a trimmed log reads
	} else {
		p = capture(text).part(n, at-dropped)
	}
	h.place.next = off + int64(len(p))
	return p, nil
}

func (h *eventFile) close() { h.server.growing.release(h.file) }

// eventsSize is the size of `events` and the time of the last.
func eventsSize(r *request) (int64, time.Time) {
	events := r.events()
	changed := time.Time{}
	if n := len(events); n > 0 {
		changed = events[n-1].Time
	}
	if s := r.server.growing.held(plainID(r.node)); s != nil {
		text, dropped := s.text.now()
		return dropped + int64(len(text)), changed
	}
	return r.server.eventSizes.of(r.node, events), changed
}

// eventSizes keeps the lengths of events' lines, so that a stat(2) writes none but the new ones.
type eventSizes struct {
	mu   sync.Mutex // guards what follows
	size map[uint64]*eventSize
}

type eventSize struct {
	lengths []int // of the lines, oldest first
	bytes   int64 // their sum
	last    uint64
	line    []byte // reused
}

// of gives the length of the text of the events, which are all that there are.
func (t *eventSizes) of(node uint64, events []vmm.Event) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.size[node]
	if s == nil {
		s = new(eventSize)
		t.size[node] = s
	}
	known, _ := slices.BinarySearchFunc(events, s.last, func(e vmm.Event, last uint64) int { return cmp.Compare(e.Seq, last+1) })
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
