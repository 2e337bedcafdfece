package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"banger/vmm"
)

// handle is what one open reads from. read gives at most n bytes from off,
// nothing at the end; it may block until the request's ctx ends. close frees what it holds.
type handle interface {
	read(r *request, n int, off int64) ([]byte, error)
	close()
}

// capture is a file's whole text at one moment.
type capture []byte

// part gives at most n bytes from off, nothing at the end.
func (c capture) part(n int, off int64) []byte {
	if off >= int64(len(c)) {
		return nil
	}
	return c[off:min(int64(len(c)), off+int64(n))]
}

// generated is an open generated file: what its open captured is what its reads give. Who reads from the beginning again, as a monitor
// that keeps the descriptor does, wants what is there now, as with files of cgroup.
type generated struct {
	mu      sync.Mutex // guards what follows
	capture capture
	at      time.Time
	begun   bool // it was read from its beginning
}

// lateRead is how long after the open a first read is one of a kept descriptor.
const lateRead = 200 * time.Millisecond

func (g *generated) part(n int, off int64) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.capture.part(n, off)
}

func (g *generated) read(_ *request, n int, off int64) ([]byte, error) { return g.part(n, off), nil }

// again reports whether a read from the beginning is not the first, or comes late.
func (g *generated) again() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.begun
	g.begun = true
	return was || time.Since(g.at) > lateRead
}

func (g *generated) renew(h *opened, c capture) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := h.share.Hold(int64(cap(c))); err != nil {
		return err
	}
	g.capture = c
	return nil
}

func (g *generated) close() {}

// maxTerminals bounds the terminals of one VM, each of which holds what the guest prints.
const maxTerminals = 64

// consoleOpen gives what was printed; opened read-write, what is printed from now on.
func consoleOpen(r *request, readWrite bool) (handle, error) {
	r.vm.Touch()
	if !readWrite {
		return logOf(vmm.ConsoleFile)(r, false)
	}
	c, err := guestConsole(r)
	if err != nil {
		return nil, err
	}
	all, serial := &r.server.terminals, r.vm.Serial()
	if !all.acquire(serial) {
		return nil, r.tooMany("%s has %d terminals: close some: %w", r.snap().Name, all.most, vmm.ErrBusy)
	}
	return terminal{c.Subscribe(), func() { all.release(serial) }}, nil
}

// tooMany refuses an open; the VM's `error` tells it.
func (r *request) tooMany(format string, args ...any) error {
	err := fmt.Errorf("cannot open "+r.file.name+": "+format, args...)
	r.vm.Fail(err)
	return err
}

func guestConsole(r *request) (vmm.Console, error) {
	s := r.snap()
	if s.Machine == nil {
		return nil, fmt.Errorf("cannot use the console of %s, it is %s: %w", s.Name, s.State, vmm.ErrNotRunning)
	}
	c := s.Machine.Console()
	if c == nil {
		return nil, fmt.Errorf("%s has no console: %w", s.Name, vmm.ErrUnsupported)
	}
	return c, nil
}

func consoleType(r *request, p []byte) (int, error) {
	c, err := guestConsole(r)
	if err != nil {
		return 0, err
	}
	ctx, cancel := r.patience()
	defer cancel()
	n, err := c.Write(ctx, p)
	return n, r.again(err)
}

// terminal is a console opened read-write. Its offsets mean nothing.
type terminal struct {
	reader vmm.ConsoleReader
	end    func()
}

func (t terminal) read(r *request, n int, _ int64) ([]byte, error) {
	ctx, cancel := r.patience()
	defer cancel()
	p := make([]byte, n)
	n, err := t.reader.Read(ctx, p)
	if err == io.EOF {
		err = nil
	}
	return p[:n], r.again(err)
}

func (t terminal) close() {
	t.reader.Close()
	t.end()
}

// followOpen gives the events that come after the open.
func followOpen(r *request, _ bool) (handle, error) {
	return &eventStream{next: r.follow(), turn: make(chan struct{}, 1)}, nil
}

// eventStream gives whole lines in the order they happen; offsets mean nothing.
type eventStream struct {
	next vmm.EventReader
	turn chan struct{} // held by the one read at a time that owns next and rest
	rest bytes.Buffer
}

func (h *eventStream) read(r *request, n int, _ int64) ([]byte, error) {
	ctx, cancel := r.patience()
	defer cancel()
	select {
	case h.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, r.again(ctx.Err())
	}
	defer func() { <-h.turn }()
	if h.rest.Len() == 0 {
		events, lost, err := h.next.Next(ctx, 1) // a read gives one line, and nobody has to keep others
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, r.again(err)
		}
		if lost > 0 {
			fmt.Fprintf(&h.rest, "lost %d\n", lost)
		}
		h.rest.Write(appendEvents(nil, events))
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
	wait func(context.Context) (string, error)
	mu   sync.Mutex // guards text
	text capture
}

func (w *waiter) read(r *request, n int, off int64) ([]byte, error) {
	w.mu.Lock()
	text := w.text
	w.mu.Unlock()
	if text == nil {
		ctx, cancel := r.patience()
		defer cancel()
		answer, err := w.wait(ctx)
		if err != nil {
			return nil, r.again(err)
		}
		text = capture(answer + "\n")
		w.mu.Lock()
		w.text = text
		w.mu.Unlock()
	}
	return text.part(n, off), nil
}

func (w *waiter) close() {}

// timing gives the seconds that a wait took.
func timing(wait func(context.Context) (time.Duration, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		took, err := wait(ctx)
		return strconv.FormatFloat(took.Seconds(), 'f', 2, 64), err
	}
}

func waitState(want vmm.State) func(*request, bool) (handle, error) {
	return func(r *request, _ bool) (handle, error) {
		v, m, began := r.vm, r.server.o.Manager, time.Now()
		return &waiter{wait: timing(func(ctx context.Context) (time.Duration, error) {
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
		})}, nil
	}
}

func waitHealthy(r *request, _ bool) (handle, error) {
	v, c := r.vm, r.server.o.Collector
	return &waiter{wait: timing(func(ctx context.Context) (time.Duration, error) { return c.WaitHealthy(ctx, v) })}, nil
}

func waitPort(r *request, _ bool) (handle, error) {
	v, c, port := r.vm, r.server.o.Collector, int(r.param)
	return &waiter{wait: timing(func(ctx context.Context) (time.Duration, error) { return c.WaitPort(ctx, v, port) })}, nil
}
