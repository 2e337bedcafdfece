package guestfs

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
	askWait    = 3 * time.Second  // for attributes and names
	dataWait   = 10 * time.Second // for content
	restFor    = time.Second      // without requests after a guest did not answer in time
	idleFor    = time.Minute      // without use until a session is closed
	touchEvery = time.Second      // how often using a VM's files renews its lease
)

var (
	errIdle    = errors.New("the session was not used")
	errSilent  = fmt.Errorf("the guest's files do not answer: %w", vmm.ErrTimeout)
	errReplace = fmt.Errorf("another run of the VM began: %w", vmm.ErrNotRunning)
)

// sessions holds one SFTP session for each VM whose files are used.
type sessions struct {
	ctx   context.Context // ends with the mount
	work  *sync.WaitGroup
	now   func() time.Time
	after func(time.Duration) <-chan time.Time

	mu     sync.Mutex // guards what follows
	open   map[uint64]*session
	closed bool
}

// close keeps new sessions from beginning. Those that exist end with ctx.
func (t *sessions) close() {
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

// session belongs to one run of a VM. It may still be opening.
type session struct {
	machine vmm.Machine // immutable
	ready   chan struct{}
	// Set before ready is closed.
	client *sftp.Client
	err    error

	opens   atomic.Int64 // files and directories of it that are open
	used    atomic.Int64 // UnixNano
	touched atomic.Int64 // when its use renewed the VM's lease; UnixNano
	rests   atomic.Int64 // when the guest may be asked again; UnixNano
}

// get returns the session of a running VM, which it opens if there is none. ctx bounds the waiting.
func (t *sessions) get(ctx context.Context, v filesVM) (*session, error) {
	s := v.Snapshot()
	if s.State != vmm.Running || s.Machine == nil {
		return nil, notRunning(s)
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
		g = &session{machine: s.Machine, ready: make(chan struct{})}
		g.used.Store(now.UnixNano())
		t.open[v.Serial()] = g
		t.work.Go(func() { t.serve(v.Serial(), g) })
	case now.UnixNano() < g.rests.Load():
		t.mu.Unlock()
		return nil, errSilent
	}
	t.mu.Unlock()
	g.used.Store(now.UnixNano())
	last := g.touched.Load()
	if now.UnixNano()-last >= int64(touchEvery) && g.touched.CompareAndSwap(last, now.UnixNano()) {
		v.Touch()
	}
	select {
	case <-g.ready:
		return g, g.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// over reports whether the session has ended, or could not be opened.
func (g *session) over() bool {
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

// drop ends the session for all its users.
func (g *session) drop(why error) {
	select {
	case <-g.ready:
		if g.err == nil {
			go g.client.Close(why) // waited for by serve
		}
	default: // the session ends with the machine
	}
}

// serve opens a session and watches it until it ends, idles, or the mount ends.
func (t *sessions) serve(serial uint64, g *session) {
	g.client, g.err = t.begin(g.machine)
	if errors.Is(g.err, vmm.ErrTimeout) {
		g.rests.Store(t.now().Add(restFor).UnixNano())
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

// watch returns when the session has ended or should, with the reason.
func (t *sessions) watch(g *session) error {
	for idle := idleFor; ; {
		select {
		case <-g.client.Done():
			return nil
		case <-g.machine.Done():
			return vmm.ErrNotRunning
		case <-t.ctx.Done():
			return t.ctx.Err()
		case <-t.after(idle):
		}
		idle = idleFor - t.now().Sub(time.Unix(0, g.used.Load()))
		if g.opens.Load() > 0 {
			idle = idleFor
		}
		if idle <= 0 {
			return errIdle
		}
	}
}

func (t *sessions) begin(m vmm.Machine) (*sftp.Client, error) {
	ctx, cancel := context.WithTimeout(t.ctx, askWait)
	defer cancel()
	streamer, ok := m.Guest().(guest.Streamer)
	if !ok {
		return nil, vmm.ErrNoAgent
	}
	conn, err := streamer.Stream(ctx, sftp.Stream, nil)
	var c *sftp.Client
	if err == nil {
		c, err = sftp.NewClient(ctx, conn)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = errSilent // ask takes the deadline's error for that of a session
	}
	return c, err
}

// ask calls f with the session of a VM, bounded in time. A guest that was silent for half of the
// limit or longer loses its session, and with it the requests of others: callers that wait for a
// directory's lock in the kernel cannot be killed.
func (t *sessions) ask(ctx context.Context, v filesVM, limit time.Duration,
	f func(context.Context, *session) error) error {
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
		// Half is long enough: an earlier request may have been answered just after this one began.
		if g != nil && t.now().Sub(g.client.Heard()) > limit/2 {
			g.rests.Store(t.now().Add(restFor).UnixNano())
			g.drop(errSilent)
		}
		return errSilent
	}
	if s := v.Snapshot(); s.State != vmm.Running {
		return notRunning(s)
	}
	return err
}

func notRunning(s *vmm.Snapshot) error {
	return fmt.Errorf("cannot use the files of %s, it is %s: %w",
		s.Name, s.State, vmm.ErrNotRunning)
}
