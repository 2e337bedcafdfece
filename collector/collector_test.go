package collector

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"banger/vmm"
	"banger/vmm/guest"

	"github.com/google/go-cmp/cmp"
)

// testClock is moved by hand.
type testClock struct {
	mu sync.Mutex
	t  time.Time
}

func (k *testClock) now() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.t
}

func (k *testClock) advance(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.t = k.t.Add(d)
}

// testGuest answers as its functions say.
type testGuest struct {
	ping      func(context.Context) error
	listeners func(context.Context) ([]guest.Listener, error)
	stats     func(context.Context) (guest.Stats, error)
}

func (g *testGuest) Ping(ctx context.Context) (guest.Info, error) {
	return guest.Info{}, g.ping(ctx)
}
func (g *testGuest) Listeners(ctx context.Context) ([]guest.Listener, error) { return g.listeners(ctx) }
func (g *testGuest) Stats(ctx context.Context) (guest.Stats, error)          { return g.stats(ctx) }
func (g *testGuest) Configure(context.Context, guest.Config) error           { return nil }
func (g *testGuest) PowerOff(context.Context) error                          { return nil }

// hang is a guest's answer that does not come.
func hang(ctx context.Context) error {
	<-ctx.Done()
	return vmm.ErrTimeout
}

type testMachine struct {
	vmm.BaseMachine
	required
}

// required holds the methods that vmm.BaseMachine lacks. The collector calls none of them.
type required interface {
	Process() vmm.Process
	Done() <-chan struct{}
	Exit() vmm.Exit
	Kill(context.Context) error
	Close() error
}

type guestMachine struct {
	testMachine
	guest *testGuest
}

func (m guestMachine) Guest() guest.Agent { return m.guest }

// testVM is a VM whose snapshots the test publishes.
type testVM struct {
	mu        sync.Mutex
	snap      *vmm.Snapshot
	changed   chan struct{}
	published []string
}

func (v *testVM) Serial() uint64 { return 7 }
func (v *testVM) Snapshot() *vmm.Snapshot {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.snap
}
func (v *testVM) Changed() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changed
}
func (v *testVM) PublishHealth(h string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if n := len(v.published); n == 0 || v.published[n-1] != h {
		v.published = append(v.published, h)
	}
}
func (v *testVM) LastHealth() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.published) == 0 {
		return ""
	}
	return v.published[len(v.published)-1]
}
func (v *testVM) update(change func(*vmm.Snapshot)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := *v.snap
	change(&s)
	v.snap = &s
	close(v.changed)
	v.changed = make(chan struct{})
}

// newTest makes a collector without a poller, a clock that stands still, and a running VM whose guest is well.
func newTest(t *testing.T) (*Collector, *testClock, *testVM, *testGuest) {
	t.Helper()
	before := runtime.NumGoroutine()
	clock := &testClock{t: time.Unix(1790000000, 0)}
	c := newCollector(Options{})
	c.now, c.began = clock.now, clock.now()
	g := &testGuest{
		ping:      func(context.Context) error { return nil },
		listeners: func(context.Context) ([]guest.Listener, error) { return nil, nil },
		stats:     func(context.Context) (guest.Stats, error) { return guest.Stats{Procs: 5}, nil },
	}
	v := &testVM{changed: make(chan struct{}), snap: &vmm.Snapshot{
		Record: vmm.Record{Serial: 7, Name: "web", State: vmm.Running, Run: 1, Started: clock.t.Add(-time.Minute)},
		CurrentRun: vmm.CurrentRun{Machine: guestMachine{guest: g}, Ready: true, ReadyIn: 2 * time.Second,
			Since: clock.t.Add(-time.Minute)},
		Dir: t.TempDir(),
	}}
	c.each = func(visit func(VM)) { visit(v) }
	t.Cleanup(func() {
		c.Close()
		waitFor(t, "the collector's goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	})
	return c, clock, v, g
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func waiting(k *cached) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.flight == nil {
		return 0
	}
	return k.flight.waiters
}

func TestReadersShareOneCollection(t *testing.T) {
	c, _, v, g := newTest(t)
	var calls atomic.Int32
	release := make(chan struct{})
	g.stats = func(context.Context) (guest.Stats, error) {
		calls.Add(1)
		<-release
		return guest.Stats{Procs: 9}, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	results := make(chan *Stats, 64)
	failed := make(chan error, 1)
	for range 64 {
		go func() {
			st, err := c.Stats(context.Background(), v)
			if err != nil {
				t.Error(err)
			}
			results <- st
		}()
	}
	go func() { _, err := c.Stats(ctx, v); failed <- err }()
	e, _ := c.entry(v)
	waitFor(t, "65 readers", func() bool { return waiting(e.cached(statsKind)) == 65 })
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled reader: %v", err)
	}
	close(release)
	first := <-results
	for range 63 {
		if st := <-results; st != first {
			t.Fatal("readers got different answers")
		}
	}
	if n := calls.Load(); n != 1 || first.Guest.Procs != 9 {
		t.Fatalf("%d collections, %+v", n, first.Guest)
	}
	if tot := c.Totals(); tot.Collections != 1 || tot.GuestCalls != 1 || tot.Errors != 0 {
		t.Fatalf("totals %+v", tot)
	}
}

func TestLastReaderToLeaveEndsTheCollection(t *testing.T) {
	c, _, v, g := newTest(t)
	began, ended := make(chan struct{}), make(chan struct{})
	g.listeners = func(ctx context.Context) ([]guest.Listener, error) {
		close(began)
		defer close(ended)
		return nil, hang(ctx)
	}
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() { _, err := c.Ports(ctx, v); failed <- err }()
	e, _ := c.entry(v)
	waitFor(t, "the reader", func() bool { return waiting(e.cached(portsKind)) == 1 })
	<-began // a collection that is cancelled before never asks
	cancel()
	<-failed
	<-ended
}

func TestMaxAge(t *testing.T) {
	c, clock, v, _ := newTest(t)
	ctx := context.Background()
	a, err := c.Stats(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	clock.advance(time.Second)
	if b, _ := c.Stats(ctx, v); b != a {
		t.Fatal("collected again within max_age")
	}
	clock.advance(time.Nanosecond)
	b, _ := c.Stats(ctx, v)
	if b == a || !b.Collected.Equal(clock.now()) {
		t.Fatal("an answer older than max_age")
	}
	v.update(func(s *vmm.Snapshot) { s.Run++ })
	if st, _, _ := c.Known(v); st != nil {
		t.Fatal("an answer of an earlier run is known")
	}
	if d, _ := c.Stats(ctx, v); d == b {
		t.Fatal("an answer of an earlier run")
	}
	v.update(func(s *vmm.Snapshot) { s.State = vmm.Paused })
	if d, _ := c.Stats(ctx, v); d.State != vmm.Paused || d.Guest != nil {
		t.Fatalf("stats of a paused VM: %+v", d)
	}
	if tot := c.Totals(); tot.Collections != 4 || tot.CacheHits != 1 {
		t.Fatalf("totals %+v", tot)
	}
}

func TestErrorReachesAllAndIsNotKept(t *testing.T) {
	c, _, v, g := newTest(t)
	release := make(chan struct{})
	broken := errors.New("broken")
	g.listeners = func(context.Context) ([]guest.Listener, error) { <-release; return nil, broken }
	errs := make(chan error, 8)
	for range 8 {
		go func() { _, err := c.Ports(context.Background(), v); errs <- err }()
	}
	e, _ := c.entry(v)
	waitFor(t, "8 readers", func() bool { return waiting(e.cached(portsKind)) == 8 })
	close(release)
	for range 8 {
		if err := <-errs; !errors.Is(err, broken) || !strings.Contains(err.Error(), "web") {
			t.Fatal(err)
		}
	}
	g.listeners = func(context.Context) ([]guest.Listener, error) { return nil, nil }
	if _, err := c.Ports(context.Background(), v); err != nil {
		t.Fatalf("the error was kept: %v", err)
	}
}

func TestRemovedVM(t *testing.T) {
	c, _, v, _ := newTest(t)
	if _, err := c.Stats(context.Background(), v); err != nil {
		t.Fatal(err)
	}
	v.update(func(s *vmm.Snapshot) { s.State = vmm.Stopped })
	done := make(chan error, 2)
	go func() { _, err := c.WaitHealthy(context.Background(), v); done <- err }()
	go func() { _, err := c.WaitPort(context.Background(), v, 80); done <- err }()
	c.exists = func(uint64) bool { return false }
	c.forget(7)
	for range 2 {
		if err := <-done; !errors.Is(err, vmm.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if _, err := c.Stats(context.Background(), v); !errors.Is(err, vmm.ErrNotFound) {
		t.Fatal(err)
	}
	if len(c.entries) != 0 || !c.hot.empty() {
		t.Fatal("something is kept of a removed VM")
	}
}

func TestKeepWarm(t *testing.T) {
	c, clock, v, g := newTest(t)
	var calls atomic.Int32
	g.stats = func(context.Context) (guest.Stats, error) { calls.Add(1); return guest.Stats{}, nil }
	idle := func() bool { return len(c.warming) == 0 }
	if c.keepWarm() {
		t.Fatal("something is hot before any read")
	}
	c.Stats(context.Background(), v)
	for i := range int32(10) { // a second each: within ten seconds of the read, each tick collects
		clock.advance(time.Second)
		if !c.keepWarm() {
			t.Fatalf("not hot after %d s", i+1)
		}
		waitFor(t, "the collection", func() bool {
			e, _ := c.entry(v)
			return c.Totals().Collections == uint64(i)+2 && idle() && waiting(e.cached(statsKind)) == 0
		})
	}
	before := c.Totals().CacheHits
	if _, err := c.Stats(context.Background(), v); err != nil || c.Totals().CacheHits != before+1 {
		t.Fatal("a reader did not find a warm answer")
	}
	clock.advance(keepWarm + 1)
	if c.keepWarm() || !c.hot.empty() || !idle() {
		t.Fatal("still warm")
	}
	if n := calls.Load(); n != 3 { // at 0, 5 and 10 s
		t.Fatalf("asked the guest %d times for figures that may be 5 s old", n)
	}
	if c.Totals().Collections != 11 {
		t.Fatalf("totals %+v: ports and health were not read", c.Totals())
	}
}

func TestSlowPollWakesNoGuest(t *testing.T) {
	c, clock, v, _ := newTest(t)
	c.proc = t.TempDir()
	v.update(func(s *vmm.Snapshot) { s.Process = vmm.Process{PID: 42, StartTime: 1000} })
	writeProc(t, c.proc, 42, 1000, 50)
	for slice := range uint64(pollSlices) {
		c.pollSlice(slice)
	}
	clock.advance(10 * time.Second)
	writeProc(t, c.proc, 42, 1000, 150)
	c.pollSlice(7)
	st, _, _ := c.Known(v)
	if st == nil || st.CPUPercent == nil || *st.CPUPercent != 10 || c.Totals().GuestCalls != 0 {
		t.Fatalf("%+v %+v", st, c.Totals())
	}
	v.update(func(s *vmm.Snapshot) { s.State = vmm.Stopped })
	if st, _, _ := c.Known(v); st != nil {
		t.Fatal("process figures of a stopped VM")
	}
}

func TestPollerRuns(t *testing.T) {
	c, _, v, _ := newTest(t)
	c.now = time.Now
	c.pollInterval = 16 * time.Millisecond
	c.statsMaxAge = 40 * time.Millisecond
	c.start(c.poller)
	if _, err := c.Stats(context.Background(), v); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "warm collections", func() bool { return c.Totals().Collections > 5 })
	e, _ := c.entry(v)
	waitFor(t, "the slow poll", func() bool { return e.slow.Load() != nil })
}

func TestHealth(t *testing.T) {
	c, clock, v, g := newTest(t)
	c.guestTimeout = 20 * time.Millisecond
	ctx := context.Background()
	is := func(want string) {
		t.Helper()
		h, err := c.Health(ctx, v)
		if err != nil || h.String() != want {
			t.Fatalf("health %v %v, want %s", h, err, want)
		}
	}
	is("healthy")
	g.ping = hang
	is("healthy") // not yet too old
	clock.advance(2 * time.Second)
	is("unhealthy the guest's agent did not answer in time")
	clock.advance(2 * time.Second)
	g.ping = func(context.Context) error { return errors.New("bad\nanswer") }
	is("unhealthy cannot ask web: bad answer")
	v.update(func(s *vmm.Snapshot) { s.Ready = false })
	is("starting")
	for state, want := range map[vmm.State]string{vmm.Paused: "paused", vmm.Failed: "stopped", vmm.Stopped: "stopped", vmm.Starting: "starting"} {
		v.update(func(s *vmm.Snapshot) { s.State = state })
		is(want)
	}
	v.update(func(s *vmm.Snapshot) { s.State, s.Machine = vmm.Running, testMachine{} })
	is("unhealthy no agent")
	if v.published[0] != "healthy" || !strings.HasPrefix(v.published[1], "unhealthy the") {
		t.Fatalf("published %q", v.published)
	}
}

func TestPatience(t *testing.T) {
	s := &vmm.Snapshot{Record: vmm.Record{Run: 1}, CurrentRun: vmm.CurrentRun{Ready: true}}
	now := time.Unix(1790000000, 0)
	var p patience
	full := 3 * time.Second
	left := func(want time.Duration) {
		t.Helper()
		if d := p.left(s, now, full); d != want {
			t.Fatalf("%v left, want %v", d, want)
		}
	}
	left(full)
	p.note(s, now, full, full, true)
	left(0)
	now = now.Add(guestSilence)
	left(guestBriefly)
	p.note(s, now.Add(5*time.Second), full, guestBriefly, true) // a short call proves nothing
	now = now.Add(guestDoubt)
	left(full)
	p.note(s, now, full, full, true)
	p.note(s, now, full, guestBriefly, false)
	left(full)
	p.note(s, now, full, full, true)
	s.Run = 2
	left(full)
	s.Ready, s.Since = false, now.Add(-time.Second)
	left(2 * time.Second)
	now = now.Add(time.Hour)
	left(guestBriefly)
}

// TestHungGuestCostsOneWait finds that a reader of all files of a hung guest waits for the first of
// them only, and that the guest is asked again before long.
func TestHungGuestCostsOneWait(t *testing.T) {
	c, clock, v, g := newTest(t)
	c.guestTimeout = 20 * time.Millisecond
	var asked atomic.Int32
	well := atomic.Bool{}
	g.listeners = func(ctx context.Context) ([]guest.Listener, error) {
		if asked.Add(1); well.Load() {
			return nil, nil
		}
		return nil, hang(ctx)
	}
	g.ping = func(ctx context.Context) error { asked.Add(1); return hang(ctx) }
	g.stats = func(ctx context.Context) (guest.Stats, error) { asked.Add(1); return guest.Stats{}, hang(ctx) }
	ctx := context.Background()
	for range 3 {
		if _, err := c.Ports(ctx, v); !errors.Is(err, vmm.ErrTimeout) {
			t.Fatalf("ports of a hung guest: %v", err)
		}
	}
	if h, err := c.Health(ctx, v); err != nil || h.Status != Unhealthy {
		t.Errorf("health of a hung guest: %+v, %v", h, err)
	}
	if st, err := c.Stats(ctx, v); err != nil || st.Guest != nil {
		t.Errorf("stats of a hung guest: %+v, %v", st, err)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("its readers asked it %d times", n)
	}
	well.Store(true)
	clock.advance(guestSilence)
	if _, err := c.Ports(ctx, v); err != nil {
		t.Errorf("a guest that is well again: %v", err)
	}
}

func TestPortsErrors(t *testing.T) {
	c, _, v, g := newTest(t)
	c.guestTimeout = 20 * time.Millisecond
	g.listeners = func(ctx context.Context) ([]guest.Listener, error) { return nil, hang(ctx) }
	is := func(want error) {
		t.Helper()
		if _, err := c.Ports(context.Background(), v); !errors.Is(err, want) {
			t.Fatalf("%v, want %v", err, want)
		}
	}
	is(vmm.ErrTimeout)
	for _, state := range []vmm.State{vmm.Stopped, vmm.Paused, vmm.Starting, vmm.Failed} {
		v.update(func(s *vmm.Snapshot) { s.State = state })
		is(vmm.ErrNotRunning)
	}
	v.update(func(s *vmm.Snapshot) { s.State, s.Machine = vmm.Running, testMachine{} })
	is(vmm.ErrNoAgent)
}

func TestWait(t *testing.T) {
	c, _, v, g := newTest(t)
	c.now = time.Now // an answer must get older than the pace
	var open atomic.Bool
	asked := make(chan struct{}, 1)
	g.listeners = func(context.Context) ([]guest.Listener, error) {
		select {
		case asked <- struct{}{}:
		default:
		}
		if open.Load() {
			return []guest.Listener{{Protocol: "tcp", Port: 80}, {Protocol: "udp", Port: 81}}, nil
		}
		return nil, errors.New("not yet")
	}
	v.update(func(s *vmm.Snapshot) { s.State, s.Ready = vmm.Starting, false })
	type result struct {
		d   time.Duration
		err error
	}
	healthy, port := make(chan result, 1), make(chan result, 1)
	go func() { d, err := c.WaitHealthy(context.Background(), v); healthy <- result{d, err} }()
	go func() { d, err := c.WaitPort(context.Background(), v, 80); port <- result{d, err} }()
	v.update(func(s *vmm.Snapshot) { s.State = vmm.Running })
	v.update(func(s *vmm.Snapshot) { s.Ready = true })
	if r := <-healthy; r.err != nil || r.d != 2*time.Second {
		t.Fatal(r)
	}
	<-asked
	open.Store(true)
	if r := <-port; r.err != nil {
		t.Fatal(r)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.WaitPort(ctx, v, 81); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("udp counted as tcp: %v", err)
	}
	if _, err := c.WaitPort(context.Background(), v, 0); !errors.Is(err, vmm.ErrInvalid) {
		t.Fatal(err)
	}
	go func() { d, err := c.WaitPort(context.Background(), v, 82); port <- result{d, err} }()
	v.update(func(s *vmm.Snapshot) { s.State = vmm.Failed })
	if r := <-port; !errors.Is(r.err, vmm.ErrGone) {
		t.Fatal(r)
	}
}

func TestReadAfterClose(t *testing.T) {
	c, _, v, _ := newTest(t)
	c.Close()
	if _, err := c.Stats(context.Background(), v); !errors.Is(err, errClosed) {
		t.Fatal(err)
	}
}

func TestStatsOfHost(t *testing.T) {
	c, _, v, _ := newTest(t)
	c.proc = t.TempDir()
	c.links.dump = func() (map[uint64]vmm.LinkStats, error) {
		return map[uint64]vmm.LinkStats{7: {RxBytes: 200, TxBytes: 100, RxPackets: 4, TxPackets: 3}, 8: {}}, nil
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	writeProc(t, c.proc, 42, 1000, 50)
	work := vmm.DiskPath(v.snap.Dir, vmm.DiskWork)
	if err := os.Mkdir(vmm.DisksDir(v.snap.Dir), 0o700); err != nil {
		t.Fatal(err)
	}
	write(work, "x")
	os.Truncate(work, 1<<30)
	v.update(func(s *vmm.Snapshot) {
		s.Config.Disk = 1 << 30
		s.Process, s.Config.Net, s.Address = vmm.Process{PID: 42, StartTime: 1000}, vmm.NetBridge, netip.MustParseAddr("127.0.0.1")
	})
	st, err := c.Stats(context.Background(), v)
	if err != nil {
		t.Fatal(err)
	}
	if *st.NetRxBytes != 100 || *st.NetTxBytes != 200 || *st.NetRxPackets != 3 || *st.NetTxPackets != 4 {
		t.Error("link figures", st)
	}
	if st.OverlayBytes != nil || *st.WorkBytes == 0 || *st.WorkBytes > 1<<20 {
		t.Error("disk figures", st)
	}
	if *st.CPUUsec != 500000 || *st.RSSBytes != 7*int64(os.Getpagesize()) || *st.Uptime != 60 || st.CPUPercent != nil {
		t.Error("process figures", st)
	}
	v.update(func(s *vmm.Snapshot) { s.State = vmm.Stopped })
	if st, err = c.Stats(context.Background(), v); err != nil {
		t.Fatal(err)
	}
	want := &Stats{Collected: st.Collected, State: vmm.Stopped, WorkBytes: st.WorkBytes}
	if d := cmp.Diff(want, st); d != "" || st.WorkBytes == nil {
		t.Error(d)
	}
}

func TestHealthIsToldWithoutReaders(t *testing.T) {
	c, _, v, g := newTest(t)
	g.ping = func(context.Context) error { t.Error("the guest was asked"); return nil }
	c.find = func(serial uint64) VM {
		if serial == 7 {
			return v
		}
		return nil
	}
	step := func(change func(*vmm.Snapshot), booting bool) {
		t.Helper()
		v.update(change)
		c.stateChanged(7)
		c.stateChanged(8) // removed
		if c.publishUntold() != booting {
			t.Fatalf("booting is %v", !booting)
		}
	}
	step(func(s *vmm.Snapshot) { s.State, s.Ready = vmm.Starting, false }, true)
	step(func(s *vmm.Snapshot) { s.State = vmm.Running }, true)
	v.update(func(s *vmm.Snapshot) { s.Ready = true }) // no event tells this
	if c.publishUntold() {
		t.Fatal("still booting")
	}
	step(func(s *vmm.Snapshot) { s.State = vmm.Paused }, false)
	step(func(s *vmm.Snapshot) { s.State = vmm.Failed }, false)
	if d := cmp.Diff([]string{"starting", "healthy", "paused", "stopped"}, v.published); d != "" {
		t.Fatal(d)
	}
}
