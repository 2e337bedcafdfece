package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"banger/vmm"
)

// handle is what one open reads from. read gives at most n bytes from off,
// nothing at the end; it may block until ctx ends. close frees what it holds.
type handle interface {
	read(ctx context.Context, n int, off int64) ([]byte, error)
	close()
}

// capture is what an open of a generated file gives to all its reads.
type capture []byte

func (c capture) read(_ context.Context, n int, off int64) ([]byte, error) {
	if off >= int64(len(c)) {
		return nil, nil
	}
	return c[off:min(int64(len(c)), off+int64(n))], nil
}

func (capture) close() {}

// tail reads a file of the host that grows.
type tail struct{ *vmm.Tail }

func (t tail) read(_ context.Context, n int, off int64) ([]byte, error) {
	p := make([]byte, n)
	n, err := t.ReadAt(p, off)
	if err == io.EOF {
		err = nil
	}
	return p[:n], err
}

func (t tail) close() { t.Tail.Close() }

func logOpen(r *request, _ bool) (handle, error) { return openTail(r, vmm.LogFile) }

func openTail(r *request, name string) (handle, error) {
	t, err := vmm.OpenTail(filepath.Join(r.snap().Dir, name))
	if err != nil {
		return nil, err
	}
	return tail{t}, nil
}

func tailSize(name string) func(*request) int64 {
	return func(r *request) int64 {
		t, err := vmm.OpenTail(filepath.Join(r.snap().Dir, name))
		if err != nil {
			return 0
		}
		defer t.Close()
		return t.Size()
	}
}

// consoleOpen gives what was printed; opened read-write, what is printed from now on.
func consoleOpen(r *request, readWrite bool) (handle, error) {
	r.vm.Touch()
	if !readWrite {
		return openTail(r, vmm.ConsoleFile)
	}
	c, err := guestConsole(r)
	if err != nil {
		return nil, err
	}
	return &terminal{reader: c.Subscribe(), nonblock: r.nonblock}, nil
}

func guestConsole(r *request) (vmm.Console, error) {
	s := r.snap()
	if s.Machine == nil {
		return nil, fmt.Errorf("cannot use the console of %s, it is %s: %w", s.Name, s.State, vmm.ErrNotRunning)
	}
	c, ok := s.Machine.(vmm.Consoler)
	if !ok {
		return nil, fmt.Errorf("%s has no console: %w", s.Name, vmm.ErrUnsupported)
	}
	return c.Console(), nil
}

func consoleType(r *request, p []byte) error {
	c, err := guestConsole(r)
	if err == nil {
		_, err = c.Write(r.ctx, p)
	}
	return err
}

// terminal is a console opened read-write. Its offsets mean nothing.
type terminal struct {
	reader   vmm.ConsoleReader
	nonblock bool
}

func (t *terminal) read(ctx context.Context, n int, _ int64) ([]byte, error) {
	if t.nonblock && t.reader.Pending() == 0 {
		return nil, errAgain
	}
	p := make([]byte, n)
	n, err := t.reader.Read(ctx, p)
	if err == io.EOF {
		err = nil
	}
	return p[:n], err
}

func (t *terminal) close() { t.reader.Close() }

// eventLine is one line of `events`.
func eventLine(b *bytes.Buffer, e vmm.Event) {
	fmt.Fprintf(b, "%s %d %s %s", formatTime(e.Time), e.Seq, e.VM, e.What)
	if e.Detail != "" {
		b.WriteByte(' ')
		b.WriteString(escape(e.Detail))
	}
	b.WriteByte('\n')
}

func eventLines(events []vmm.Event) *bytes.Buffer {
	b := new(bytes.Buffer)
	for _, e := range events {
		eventLine(b, e)
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

func eventsSize(r *request) int64 { return int64(eventLines(r.events()).Len()) }

// eventsOpen gives the events so far; a reader that stays, as tail -f, sees it grow.
func eventsOpen(r *request, _ bool) (handle, error) {
	follow := r.follow() // before the lines, so that none is missed; those of both are told by Seq
	events := r.events()
	h := &eventFile{next: follow, text: eventLines(events).Bytes()}
	if n := len(events); n > 0 {
		h.last = events[n-1].Seq
	}
	return h, nil
}

// maxEventFile bounds the text that one reader of `events` may make the daemon hold, bytes.
const maxEventFile = 8 << 20

type eventFile struct {
	mu   sync.Mutex // guards what follows
	next vmm.EventReader
	text []byte
	last uint64
}

func (h *eventFile) read(ctx context.Context, n int, off int64) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for off >= int64(len(h.text)) && h.next.Ready() && len(h.text) < maxEventFile {
		events, _, err := h.next.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if e.Seq > h.last {
				h.text = append(h.text, eventLines([]vmm.Event{e}).Bytes()...)
				h.last = e.Seq
			}
		}
	}
	return capture(h.text).read(ctx, n, off)
}

func (h *eventFile) close() {}

// followOpen gives the events that come after the open.
func followOpen(r *request, _ bool) (handle, error) {
	return &eventStream{next: r.follow(), nonblock: r.nonblock, turn: make(chan struct{}, 1)}, nil
}

// eventStream gives whole lines in the order they happen; offsets mean nothing.
type eventStream struct {
	next     vmm.EventReader
	nonblock bool
	turn     chan struct{} // held by the one read at a time that owns next and rest
	rest     bytes.Buffer
}

func (h *eventStream) read(ctx context.Context, n int, _ int64) ([]byte, error) {
	select {
	case h.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-h.turn }()
	if h.rest.Len() == 0 {
		if h.nonblock && !h.next.Ready() {
			return nil, errAgain
		}
		events, lost, err := h.next.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if lost > 0 {
			fmt.Fprintf(&h.rest, "lost %d\n", lost)
		}
		h.rest.Write(eventLines(events).Bytes())
	}
	// One line at a time: head and a shell's read seek back over what they read too much.
	if i := bytes.IndexByte(h.rest.Bytes(), '\n'); i >= 0 {
		n = min(n, i+1)
	}
	return bytes.Clone(h.rest.Next(n)), nil
}

func (h *eventStream) close() {}

// waiter blocks in its first read and gives one line.
type waiter struct {
	wait     func(context.Context) (time.Duration, error)
	nonblock bool
	mu       sync.Mutex // guards text
	text     capture
}

func (w *waiter) read(ctx context.Context, n int, off int64) ([]byte, error) {
	w.mu.Lock()
	text := w.text
	w.mu.Unlock()
	if text == nil {
		if w.nonblock {
			// One look: a wait that is over at once needs no blocking.
			short, cancel := context.WithTimeout(ctx, time.Millisecond)
			defer cancel()
			ctx = short
		}
		took, err := w.wait(ctx)
		if w.nonblock && errors.Is(err, context.DeadlineExceeded) {
			return nil, errAgain
		}
		if err != nil {
			return nil, err
		}
		text = capture(strconv.FormatFloat(took.Seconds(), 'f', 2, 64) + "\n")
		w.mu.Lock()
		w.text = text
		w.mu.Unlock()
	}
	return text.read(ctx, n, off)
}

func (w *waiter) close() {}

func waitState(want vmm.State) func(*request, bool) (handle, error) {
	return func(r *request, _ bool) (handle, error) {
		v, m, began := r.vm, r.server.o.Manager, time.Now()
		return &waiter{nonblock: r.nonblock, wait: func(ctx context.Context) (time.Duration, error) {
			for {
				changed := v.Changed()
				s := v.Snapshot()
				switch {
				case m.BySerial(v.Serial()) == nil:
					return 0, fmt.Errorf("%s was removed: %w", s.Name, vmm.ErrNotFound)
				case s.State == want:
					return time.Since(began), nil
				case s.State == vmm.Failed:
					return 0, fmt.Errorf("%s failed: %s: %w", s.Name, s.Error, vmm.ErrGone)
				}
				select {
				case <-changed:
				case <-ctx.Done():
					return 0, ctx.Err()
				}
			}
		}}, nil
	}
}

func waitHealthy(r *request, _ bool) (handle, error) {
	v, c := r.vm, r.server.o.Collector
	return &waiter{nonblock: r.nonblock, wait: func(ctx context.Context) (time.Duration, error) { return c.WaitHealthy(ctx, v) }}, nil
}

func waitPort(r *request, _ bool) (handle, error) {
	v, c, port := r.vm, r.server.o.Collector, int(r.param)
	return &waiter{nonblock: r.nonblock, wait: func(ctx context.Context) (time.Duration, error) { return c.WaitPort(ctx, v, port) }}, nil
}
