package fs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
	"banger/vmm/guest/sftp"
)

const (
	guestWait  = 3 * time.Second  // for what a guest says of its files
	dataWait   = 10 * time.Second // for what is in them
	guestRest  = time.Second      // after it did not answer in time, a guest is not asked: who waits for a directory's lock cannot be killed
	guestIdle  = time.Minute      // without use until a session is closed
	touchEvery = time.Second      // a use of a VM's files renews its lease so often
)

var (
	errIdle    = errors.New("the session was not used")
	errSilent  = fmt.Errorf("the guest's files do not answer: %w", vmm.ErrTimeout)
	errReplace = fmt.Errorf("another run of the VM began: %w", vmm.ErrNotRunning)
)

// guestSessions are the file transfers with guests, one for each VM whose files are used.
type guestSessions struct {
	ctx   context.Context // ends with the mount
	work  *sync.WaitGroup
	now   func() time.Time
	after func(time.Duration) <-chan time.Time

	mu     sync.Mutex // guards what follows
	open   map[uint64]*guestSession
	closed bool
}

// close lets no session begin any more; those there are end with the mount.
func (t *guestSessions) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
}

// filesVM is what a session needs of a VM.
type filesVM interface {
	Serial() uint64
	Snapshot() *vmm.Snapshot
	Touch()
}

// guestSession is one run's. It may still be opening.
type guestSession struct {
	machine vmm.Machine // immutable
	ready   chan struct{}
	// Set before ready is closed.
	client *sftp.Client
	err    error

	opens   atomic.Int64 // files and directories of it that are open
	used    atomic.Int64 // UnixNano
	touched atomic.Int64 // when its use renewed the VM's lease; UnixNano
	rests   atomic.Int64 // until then it is not asked; UnixNano
}

// get gives the session of a VM that runs, opening it if there is none. ctx bounds the waiting.
func (t *guestSessions) get(ctx context.Context, v filesVM) (*guestSession, error) {
	s := v.Snapshot()
	if s.State != vmm.Running || s.Machine == nil {
		return nil, fmt.Errorf("cannot use the files of %s, it is %s: %w", s.Name, s.State, vmm.ErrNotRunning)
	}
	now := t.now()
	t.mu.Lock()
	g := t.open[v.Serial()]
	switch {
	case t.closed:
		t.mu.Unlock()
		return nil, context.Canceled
	case g == nil || g.machine != s.Machine || g.over() && now.UnixNano() >= g.rests.Load():
		if g != nil && g.machine != s.Machine {
			g.drop(errReplace)
		}
		g = &guestSession{machine: s.Machine, ready: make(chan struct{})}
		g.used.Store(now.UnixNano())
		t.open[v.Serial()] = g
		t.work.Add(1)
		go func() {
			defer t.work.Done()
			t.serve(v.Serial(), g)
		}()
	case now.UnixNano() < g.rests.Load():
		t.mu.Unlock()
		return nil, errSilent
	}
	t.mu.Unlock()
	g.used.Store(now.UnixNano())
	if last := g.touched.Load(); now.UnixNano()-last >= int64(touchEvery) && g.touched.CompareAndSwap(last, now.UnixNano()) {
		v.Touch()
	}
	select {
	case <-g.ready:
		return g, g.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// over reports whether it was opened, or was not, and has ended.
func (g *guestSession) over() bool {
	select {
	case <-g.ready:
	default:
		return false
	}
	if g.err != nil {
		return true
	}
	select {
	case <-g.client.Done():
		return true
	default:
		return false
	}
}

// drop ends it for all who use it.
func (g *guestSession) drop(why error) {
	select {
	case <-g.ready:
		if g.err == nil {
			go g.client.Close(why) // waited for by serve
		}
	default: // it ends with the machine
	}
}

// serve opens a session and stays with it until it ends, is not used for long, or the mount ends.
func (t *guestSessions) serve(serial uint64, g *guestSession) {
	g.client, g.err = t.begin(g.machine)
	if errors.Is(g.err, vmm.ErrTimeout) {
		g.rests.Store(t.now().Add(guestRest).UnixNano())
	}
	close(g.ready)
	if g.err == nil {
		g.client.Close(t.watch(g))
	}
	if rest := time.Unix(0, g.rests.Load()).Sub(t.now()); rest > 0 {
		select {
		case <-t.after(rest):
		case <-t.ctx.Done():
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open[serial] == g {
		delete(t.open, serial)
	}
}

// watch returns when the session has ended or should, and why.
func (t *guestSessions) watch(g *guestSession) error {
	for idle := guestIdle; ; {
		select {
		case <-g.client.Done():
			return nil
		case <-g.machine.Done():
			return vmm.ErrNotRunning
		case <-t.ctx.Done():
			return t.ctx.Err()
		case <-t.after(idle):
		}
		idle = guestIdle - t.now().Sub(time.Unix(0, g.used.Load()))
		if g.opens.Load() > 0 {
			idle = guestIdle
		}
		if idle <= 0 {
			return errIdle
		}
	}
}

func (t *guestSessions) begin(m vmm.Machine) (*sftp.Client, error) {
	ctx, cancel := context.WithTimeout(t.ctx, guestWait)
	defer cancel()
	g, ok := m.(vmm.Guester)
	if !ok {
		return nil, vmm.ErrNoAgent
	}
	streamer, ok := g.Guest().(guest.Streamer)
	if !ok {
		return nil, vmm.ErrNoAgent
	}
	conn, err := streamer.Stream(ctx, sftp.Stream, nil)
	if err != nil {
		return nil, err
	}
	c, err := sftp.NewClient(ctx, conn)
	if errors.Is(err, context.DeadlineExceeded) {
		err = errSilent
	}
	return c, err
}

// ask calls f with the session of a VM, bounded in time. When a guest has said nothing for half of that or longer, the session ends, and with it the requests of others.
func (t *guestSessions) ask(ctx context.Context, v filesVM, limit time.Duration, f func(context.Context, *guestSession) error) error {
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	g, err := t.get(bounded, v)
	if err == nil {
		err = f(bounded, g)
	}
	switch {
	case err == nil || ctx.Err() != nil:
		return err
	case errors.Is(err, context.DeadlineExceeded):
		// Half of it is long enough: the answer to something earlier may have come just after this was asked.
		if g != nil && t.now().Sub(g.client.Heard()) > limit/2 {
			g.rests.Store(t.now().Add(guestRest).UnixNano())
			g.drop(errSilent)
		}
		return errSilent
	}
	if s := v.Snapshot(); s.State != vmm.Running {
		return fmt.Errorf("cannot use the files of %s, it is %s: %w", s.Name, s.State, vmm.ErrNotRunning)
	}
	return err
}
