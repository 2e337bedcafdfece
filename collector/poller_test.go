package collector

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
)

// settled waits until nothing is being collected for the poller.
func settled(t *testing.T, c *Collector) {
	t.Helper()
	waitFor(t, "the poller's collections to end", func() bool {
		c.mu.RLock()
		defer c.mu.RUnlock()
		under := len(c.warming) + len(c.doubting)
		for _, e := range c.entries {
			for _, k := range kinds {
				under += waiting(e.cached(k))
			}
		}
		return under == 0
	})
}

// What is read is collected in time to be fresh whenever it is read within ten seconds, and not much more often.
func TestWarmAnswersAreNeverOld(t *testing.T) {
	c, clock, v, _ := newTest(t)
	if _, err := c.Stats(context.Background(), v); err != nil {
		t.Fatal(err)
	}
	looks := int(keepWarm/c.pace()) - 1
	for range looks {
		clock.advance(c.pace())
		c.keepWarm()
		settled(t, c)
		st, _, _ := c.Known(v)
		if age := clock.now().Sub(st.Collected); age > c.statsMaxAge-c.pace() {
			t.Fatalf("an answer is %v old, and the next look comes after %v", age, c.pace())
		}
	}
	if n := c.Totals().Collections; n < 10 || n > 13 {
		t.Errorf("%d collections in ten seconds", n)
	}
}

// A guest that does not answer is asked less and less often, its host figures are kept warm all the same, and its readers are told in time.
func TestHungGuestRests(t *testing.T) {
	c, clock, v, g := newTest(t)
	c.guestTimeout = 5 * time.Millisecond
	var asked atomic.Int32
	g.stats = func(ctx context.Context) (guest.Stats, error) { asked.Add(1); return guest.Stats{}, hang(ctx) }
	g.listeners = func(ctx context.Context) ([]guest.Listener, error) { asked.Add(1); return nil, hang(ctx) }
	read := func() {
		t.Helper()
		if st, err := c.Stats(context.Background(), v); err != nil || st.Guest != nil {
			t.Fatalf("%+v, %v", st, err)
		}
	}
	read()
	var gaps []time.Duration
	last := clock.now()
	for len(gaps) < 8 {
		clock.advance(c.pace())
		read() // somebody looks all the time, and finds it warm
		before := asked.Load()
		c.keepWarm()
		settled(t, c)
		if asked.Load() != before {
			gaps = append(gaps, clock.now().Sub(last))
			last = clock.now()
		}
	}
	for i, gap := range gaps {
		want := min(firstRest<<i, longestRest)
		if gap < want || gap > want+2*c.statsMaxAge {
			t.Errorf("asked again after %v, not %v: %v", gap, want, gaps)
		}
	}
	if _, err := c.Ports(context.Background(), v); !errors.Is(err, vmm.ErrTimeout) {
		t.Error(err)
	}
	// It is well again: one answer is enough.
	g.stats = func(context.Context) (guest.Stats, error) { return guest.Stats{Procs: 1}, nil }
	clock.advance(longestRest)
	if st, err := c.Stats(context.Background(), v); err != nil || st.Guest == nil {
		t.Fatalf("%+v, %v", st, err)
	}
	e, err := c.entry(v)
	if err != nil || e.guest.doubted(v.Snapshot()) || e.guest.rests(v.Snapshot(), clock.now()) {
		t.Errorf("a guest that answered is doubted (%v)", err)
	}
}

// Guests that hang take none of the slots of those that answer.
func TestHungGuestsHaveTheirOwnLane(t *testing.T) {
	c, _, v, _ := newTest(t)
	e, err := c.entry(v)
	if err != nil {
		t.Fatal(err)
	}
	s := v.Snapshot()
	if c.lane(e, s, nil).slots != c.warming {
		t.Error("a guest that answers is in another lane")
	}
	e.guest.note(s, c.now(), c.guestTimeout, c.guestTimeout, true)
	l := c.lane(e, s, nil)
	if l.slots != c.doubting {
		t.Error("a guest that hangs is in the lane of the others")
	}
	for range doubtInAll {
		if !l.acquire() {
			t.Fatal("a slot is missing")
		}
	}
	if l.acquire() {
		t.Error("more slots than there are")
	}
	hurry := make(chan struct{})
	close(hurry)
	full := lane{make(chan struct{}, 1), hurry}
	if !full.acquire() || full.acquire() {
		t.Error("a lane of one slot")
	}
	for range doubtInAll {
		<-l.slots
	}
}

// The health of a VM is asked for while somebody watches it, of all VMs once a poll, and of none when nobody does.
func TestWatch(t *testing.T) {
	c, clock, v, g := newTest(t)
	c.find = func(uint64) VM { return v }
	var asked atomic.Int32
	g.ping = func(context.Context) error { asked.Add(1); return nil }
	second := func() int32 {
		before := asked.Load()
		for range ticksPerAge {
			clock.advance(c.pace())
			c.wantWatched()
			c.keepWarm()
			settled(t, c)
		}
		return asked.Load() - before
	}
	if n := second(); n != 0 {
		t.Errorf("asked %d times for nobody", n)
	}
	c.Watch(7)
	c.Watch(7)
	if n := second() + second(); n < 2 || n > 3 {
		t.Errorf("asked %d times in two seconds", n)
	}
	c.Unwatch(7)
	if n := second(); n < 1 {
		t.Error("not asked any more though one of two still watches")
	}
	c.Unwatch(7)
	clock.advance(keepWarm)
	if n := second(); n != 0 || len(c.watched) != 0 {
		t.Errorf("asked %d times after the last watcher left", n)
	}
	c.Watch(0)
	poll := func() {
		for slice := range uint64(pollSlices) {
			c.pollSlice(slice)
		}
		settled(t, c)
	}
	before := asked.Load()
	poll()
	if n := asked.Load() - before; n != 1 {
		t.Errorf("asked %d times in one poll", n)
	}
	e, err := c.entry(v)
	if err != nil {
		t.Fatal(err)
	}
	e.guest.note(v.Snapshot(), clock.now(), c.guestTimeout, c.guestTimeout, true)
	poll()
	if n := asked.Load() - before; n != 1 {
		t.Errorf("asked %d times, then while it rests", n)
	}
	clock.advance(firstRest)
	c.Unwatch(0)
	poll()
	if n := asked.Load() - before; n != 1 {
		t.Errorf("asked %d times, then by nobody", n)
	}
}

// Who waits for `healthy` of a VM whose agent has stopped answering waits until it does again.
func TestWaitHealthyOfAHungGuest(t *testing.T) {
	c, _, v, g := newTest(t)
	c.now, c.guestTimeout, c.healthMaxAge = time.Now, 5*time.Millisecond, 10*time.Millisecond
	var well atomic.Bool
	var asked atomic.Int32
	g.ping = func(ctx context.Context) error {
		asked.Add(1)
		if well.Load() {
			return nil
		}
		return hang(ctx)
	}
	done := make(chan error, 1)
	go func() { _, err := c.WaitHealthy(context.Background(), v); done <- err }()
	waitFor(t, "some pings", func() bool { return asked.Load() > 3 })
	select {
	case err := <-done:
		t.Fatalf("a guest that does not answer is healthy (%v)", err)
	default:
	}
	well.Store(true)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// One dump of links serves all collections of a moment, and one that is too old serves none.
func TestLinksAreDumpedOnce(t *testing.T) {
	var l links
	var dumps atomic.Int32
	release := make(chan struct{})
	l.dump = func() (map[uint64]vmm.LinkStats, error) { dumps.Add(1); <-release; return nil, nil }
	now := time.Unix(1790000000, 0)
	clock := func() time.Time { return now }
	got := make(chan *linkDump, 8)
	for range 8 {
		go func() { got <- l.since(now, clock) }()
	}
	waitFor(t, "the dump", func() bool { return dumps.Load() == 1 })
	close(release)
	for range 8 {
		if d := <-got; !d.at.Equal(now) {
			t.Error(d.at)
		}
	}
	if dumps.Load() != 1 {
		t.Errorf("%d dumps", dumps.Load())
	}
	now = now.Add(time.Second)
	if l.since(now.Add(-time.Second), clock); dumps.Load() != 1 {
		t.Error("a dump that is young enough was made again")
	}
	if l.since(now, clock); dumps.Load() != 2 {
		t.Error("an old dump was used")
	}
}

// TestQuickAsksNoGuest lets the guest's figures age while the poller itself collects.
func TestQuickAsksNoGuest(t *testing.T) {
	c, clock, v, g := newTest(t)
	if _, err := c.Stats(context.Background(), v); err != nil {
		t.Fatal(err)
	}
	e, _ := c.entry(v)
	e.bare.Store(1) // no overlay
	asked := false
	g.stats = func(context.Context) (guest.Stats, error) {
		asked = true
		return guest.Stats{}, nil
	}
	clock.advance(4*time.Second - 1500*time.Microsecond)
	e.cached(statsKind).want(clock.now())
	c.now = func() time.Time {
		clock.advance(500 * time.Microsecond)
		return clock.now()
	}
	kept := e.inside.Load()
	warmed := &task{kind: statsKind, c: c, e: e, s: v.Snapshot(), byPoller: true}
	e.cached(statsKind).warm(warmed, c.now(), lane{c.warming, nil})
	st, _ := e.known(statsKind, v.Snapshot()).(*Stats)
	if asked || st == nil || st.Guest != kept.stats {
		t.Errorf("the guest was asked: %v; figures %+v", asked, st)
	}
}

// TestReadBesideIdle has a reader that looked at its clock before the poller forgot the answer.
func TestReadBesideIdle(t *testing.T) {
	c, clock, v, _ := newTest(t)
	if _, err := c.Stats(context.Background(), v); err != nil {
		t.Fatal(err)
	}
	e, _ := c.entry(v)
	kept, early := e.cached(statsKind), clock.now().Add(keepWarm)
	clock.advance(keepWarm + time.Millisecond)
	if !kept.idle(clock.now()) {
		t.Fatal("an answer that was not read for long is not idle")
	}
	if !kept.want(early) {
		t.Error("the poller has forgotten the answer, and a read does not bring it back")
	}
}

func TestWheelBeforeItsFirstTake(t *testing.T) {
	var w wheel
	w.add(&entry{}, 1000)
	due := 0
	for tick := range int64(200) {
		due += len(w.take(tick, nil))
	}
	if due != 1 {
		t.Errorf("due %d times, want 1", due)
	}
}
