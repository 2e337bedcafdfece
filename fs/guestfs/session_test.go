package guestfs

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
	"banger/vmm/guest/sftp"
)

// clock moves only when the test moves it.
type clock struct {
	mu     sync.Mutex
	at     time.Time
	alarms map[chan time.Time]time.Time
	set    chan struct{} // gets one for each alarm that is set
}

func newClock() *clock {
	return &clock{
		at: time.Now(), alarms: make(map[chan time.Time]time.Time), set: make(chan struct{}, 100),
	}
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) after(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	alarm := make(chan time.Time, 1)
	c.alarms[alarm] = c.at.Add(d)
	c.set <- struct{}{}
	return alarm
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
	for alarm, at := range c.alarms {
		if !at.After(c.at) {
			alarm <- c.at
			delete(c.alarms, alarm)
		}
	}
}

// filesMachine is a machine whose agent serves a directory.
type filesMachine struct {
	vmm.Machine // nil: only the methods below are called
	gone        chan struct{}
	guest       filesGuest
}

func (m *filesMachine) Done() <-chan struct{} { return m.gone }
func (m *filesMachine) Guest() guest.Agent    { return &m.guest }

// agentless is a machine without an agent.
type agentless struct{ vmm.Machine }

func (agentless) Done() <-chan struct{} { return nil }
func (agentless) Guest() guest.Agent    { return nil }

type filesGuest struct {
	guest.Agent
	root string

	mu      sync.Mutex // guards what follows
	refuses error      // returned by Stream
	streams []net.Conn // the guest's ends
}

func (g *filesGuest) Stream(context.Context, string, any) (net.Conn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	here, there := net.Pipe()
	g.streams = append(g.streams, there)
	if g.refuses != nil {
		return nil, g.refuses
	}
	serve, err := sftp.Handler(g.root)(nil)
	if err != nil {
		return nil, err
	}
	go serve(there) // ends with the session
	return here, nil
}

func (g *filesGuest) refuse(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuses = err
}

func (g *filesGuest) begun() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.streams)
}

// filesTest is a VM with files.
type filesTest struct {
	*testing.T
	*clock
	sessions *sessions
	state    atomic.Pointer[vmm.Snapshot]
	touched  atomic.Int32
}

func (f *filesTest) Serial() uint64          { return 7 }
func (f *filesTest) Snapshot() *vmm.Snapshot { return f.state.Load() }
func (f *filesTest) Touch()                  { f.touched.Add(1) }

// run begins another run of the VM.
func (f *filesTest) run() *filesGuest {
	m := &filesMachine{gone: make(chan struct{}), guest: filesGuest{root: f.TempDir()}}
	f.state.Store(&vmm.Snapshot{
		Record:     vmm.Record{Name: "web", State: vmm.Running},
		CurrentRun: vmm.CurrentRun{Machine: m},
	})
	return &m.guest
}

func newFilesTest(t *testing.T) *filesTest {
	ctx, cancel := context.WithCancel(context.Background())
	f := &filesTest{T: t, clock: newClock()}
	f.sessions = &sessions{
		ctx: ctx, work: new(sync.WaitGroup), now: f.now, after: f.after,
		open: make(map[uint64]*session),
	}
	t.Cleanup(func() {
		f.sessions.close()
		cancel()
		f.sessions.work.Wait()
		if len(f.sessions.open) != 0 {
			t.Errorf("%d sessions are left", len(f.sessions.open))
		}
		_, err := f.sessions.get(context.Background(), f)
		if !errors.Is(err, context.Canceled) && !errors.Is(err, vmm.ErrNotRunning) {
			t.Errorf("after the end: %v", err)
		}
	})
	return f
}

// stat asks for the root, which must return that error, and returns the session.
func (f *filesTest) stat(want error) (used *session) {
	f.Helper()
	ask := func(ctx context.Context, g *session) error {
		used = g
		_, err := g.client.Stat(ctx, "/")()
		return err
	}
	err := f.sessions.ask(context.Background(), f, 10*time.Second, ask)
	if want == nil && err != nil || !errors.Is(err, want) {
		f.Fatalf("%v, not %v", err, want)
	}
	return used
}

// late makes a request time out.
func (f *filesTest) late(limit time.Duration, meanwhile func()) {
	f.Helper()
	ask := func(context.Context, *session) error {
		meanwhile()
		return context.DeadlineExceeded
	}
	err := f.sessions.ask(context.Background(), f, limit, ask)
	if !errors.Is(err, vmm.ErrTimeout) {
		f.Fatalf("%v", err)
	}
}

// forgotten waits until the VM has no session.
func (f *filesTest) forgotten(g *session) {
	f.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		f.sessions.mu.Lock()
		now := f.sessions.open[7]
		f.sessions.mu.Unlock()
		if now != g {
			return
		}
		if time.Now().After(end) {
			f.Fatal("the session does not end")
		}
	}
}

func TestSessionIsShared(t *testing.T) {
	f := newFilesTest(t)
	guest := f.run()
	var work sync.WaitGroup
	for range 20 {
		work.Add(1)
		go func() {
			defer work.Done()
			ask := func(ctx context.Context, g *session) error {
				_, err := g.client.Stat(ctx, "/")()
				return err
			}
			if err := f.sessions.ask(context.Background(), f, 10*time.Second, ask); err != nil {
				t.Error(err)
			}
		}()
	}
	work.Wait()
	if n := guest.begun(); n != 1 {
		t.Errorf("%d sessions for twenty requests", n)
	}
	// Steady use of the files keeps the VM from being idle.
	for range 20 {
		f.move(touchEvery / 4)
		f.stat(nil)
	}
	if n := f.touched.Load(); n != 6 {
		t.Errorf("the lease was renewed %d times in five seconds", n)
	}
}

// TestSessionRests expects that a silent guest is not asked for a second.
func TestSessionRests(t *testing.T) {
	f := newFilesTest(t)
	guest := f.run()
	g := f.stat(nil)
	<-f.set // to be idle
	// The guest has answered another request meanwhile, so the session serves others.
	f.late(4*time.Second, func() { f.move(time.Second) })
	if f.stat(nil) != g {
		t.Error("a session that serves others ended")
	}
	f.late(4*time.Second, func() { f.move(3 * time.Second) })
	<-f.set // to rest
	f.stat(vmm.ErrTimeout)
	f.move(restFor - 1)
	f.stat(vmm.ErrTimeout)
	if n := guest.begun(); n != 1 {
		t.Errorf("%d sessions began while the guest rested", n-1)
	}
	f.move(1)
	if f.stat(nil) == g {
		t.Error("an ended session is used")
	}
	if n := guest.begun(); n != 2 {
		t.Errorf("%d sessions after the rest", n)
	}
}

// TestSessionSilent expects a rest also after an agent did not accept the stream in time.
func TestSessionSilent(t *testing.T) {
	f := newFilesTest(t)
	guest := f.run()
	guest.refuse(vmm.ErrTimeout)
	f.stat(vmm.ErrTimeout)
	<-f.set // to rest
	f.stat(vmm.ErrTimeout)
	if n := guest.begun(); n != 1 {
		t.Errorf("%d sessions began", n)
	}
	f.move(restFor)
	guest.refuse(vmm.ErrNoAgent)
	f.stat(vmm.ErrNoAgent)
	// An agent that refused, rather than being silent, may be asked at once.
	guest.refuse(nil)
	f.stat(nil)
}

// TestSessionUnopened expects an error, and no crash, of a session that did not begin for an error
// of the deadline as it is.
func TestSessionUnopened(t *testing.T) {
	f := newFilesTest(t)
	f.run().refuse(context.DeadlineExceeded)
	f.stat(vmm.ErrTimeout)
	<-f.set // to rest
	f.stat(vmm.ErrTimeout)
}

func TestSessionIdles(t *testing.T) {
	f := newFilesTest(t)
	guest := f.run()
	g := f.stat(nil)
	<-f.set
	f.move(idleFor - 1)
	f.stat(nil)
	f.move(1) // a minute after it began, but it was used
	<-f.set
	g.opens.Add(1)
	f.move(idleFor)
	<-f.set
	if f.stat(nil) != g {
		t.Error("a session with an open file ended")
	}
	g.opens.Add(-1)
	f.move(idleFor)
	f.forgotten(g)
	f.stat(nil)
	if n := guest.begun(); n != 2 {
		t.Errorf("%d sessions", n)
	}
}

// TestSessionAnew restarts the agent, and then the VM.
func TestSessionAnew(t *testing.T) {
	f := newFilesTest(t)
	guest := f.run()
	g := f.stat(nil)
	guest.streams[0].Close()
	<-g.client.Done()
	if f.stat(nil) == g {
		t.Error("an ended session is used")
	}
	g = f.stat(nil)
	other := f.run()
	if f.stat(nil) == g {
		t.Error("the session of an earlier run is used")
	}
	<-g.client.Done()
	if n, m := guest.begun(), other.begun(); n != 2 || m != 1 {
		t.Errorf("%d sessions of the first run, %d of the second", n, m)
	}
	g = f.stat(nil)
	close(f.Snapshot().Machine.(*filesMachine).gone)
	<-g.client.Done()
	f.state.Store(&vmm.Snapshot{Record: vmm.Record{Name: "web", State: vmm.Stopped}})
	f.stat(vmm.ErrNotRunning)
	f.state.Store(&vmm.Snapshot{Record: vmm.Record{Name: "web", State: vmm.Running},
		CurrentRun: vmm.CurrentRun{Machine: agentless{}}})
	f.stat(vmm.ErrNoAgent)
}
