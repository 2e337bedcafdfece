// Package collector reads what VMs do: process figures, disks, links, the guest's agent.
//
// One table lists the kinds of answers that readers share (kind.go), and one the sources of the
// figures in `stats` (stats.go). Each row is registered by the file that collects it. Of each kind
// and VM there is one cached answer and at most one collection in flight for all readers
// (cached.go). A poller keeps warm what was read in the last ten seconds (poller.go).
//
// A collection uses no lock of a VM's life. A reader that leaves ends its wait, not the collection
// of the others. Parsing is pure, and what a guest sends is bounded in size and time. The collector
// knows neither files nor errnos and runs no other programs.
//
// Goroutines: one poller for all VMs, and one for each collection in flight that can block.
// [Collector.Close] waits for all of them.
package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"banger/vmm"
)

// Options of a Collector.
type Options struct {
	Manager      *vmm.Manager
	Log          *slog.Logger  // nil: silent
	Network      vmm.Network   // whose links are read; nil for none
	StatsMaxAge  time.Duration // 1 s if 0
	PortsMaxAge  time.Duration // 2 s
	HealthMaxAge time.Duration // 1 s
	PollInterval time.Duration // 10 s
}

// Parts of stats_max_age.
const (
	linkShare  = 8 // figures of links may be this part of it old
	guestShare = 5 // figures of the guest may be so many times as old
)

// Bounds of a collection.
const (
	guestTimeout  = 3 * time.Second        // for one answer of an agent
	guestBriefly  = 100 * time.Millisecond // the same, of one that was silent for guestTimeout
	guestDoubt    = 10 * time.Second       // how long an agent has only guestBriefly
	guestSilence  = time.Second            // how long it is not asked at all
	firstRest     = time.Second            // how long the poller leaves it alone, doubled each time
	longestRest   = 30 * time.Second
	callsInAll    = 4096                   // requests to agents under way
	blockTimeout  = 300 * time.Millisecond // for the VMM's block figures
	probeTimeout  = 750 * time.Millisecond // for one request to one port
	probeBudget   = 2 * probeTimeout       // for the probes of one VM after a slow answer
	probesPerVM   = 16
	probesInAll   = 64
	maxListeners  = 4096
	keepWarm      = 10 * time.Second // after the last read
	warmInAll     = 256              // collections of the poller in flight
	doubtInAll    = 64               // the same, of guests that did not answer the last time
	defaultMaxAge = time.Second
)

// VM is the part of a *vmm.VM that the collector needs.
type VM interface {
	Serial() uint64
	Snapshot() *vmm.Snapshot
	Changed() <-chan struct{}
	PublishHealth(health string)
	LastHealth() string
}

// Collector is the cache and the poller. Its methods may be called from many goroutines.
type Collector struct {
	// immutable
	log          *slog.Logger
	statsMaxAge  time.Duration
	portsMaxAge  time.Duration
	healthMaxAge time.Duration
	pollInterval time.Duration
	guestTimeout time.Duration
	now          func() time.Time
	began        time.Time
	exists       func(serial uint64) bool
	each         func(visit func(VM))
	find         func(serial uint64) VM // nil if there is none
	proc         string                 // root of procfs
	groups       *cgroups
	mostKept     int64 // files of processes that may be kept open
	prober       *http.Transport
	probes       chan struct{} // slots for probes, of all VMs
	calls        chan struct{} // slots for requests to agents
	warming      chan struct{} // slots for the poller's collections
	doubting     chan struct{} // the same, of guests that did not answer the last time
	wake         chan struct{} // wakes the poller when something became hot or changed its state
	ctx          context.Context
	cancel       context.CancelFunc
	wg           sync.WaitGroup

	mu      sync.RWMutex
	closed  bool              // guarded by mu
	entries map[uint64]*entry // guarded by mu; by serial
	watched map[uint64]int    // guarded by mu; watchers of the health, by serial; 0 is all VMs
	untold  map[uint64]news   // guarded by mu; VMs whose state determines a health to publish
	changes uint64            // guarded by mu; counts stateChanged

	hot        wheel     // what was read lately
	due        []*entry  // of keepWarm, which reuses it
	wanted     time.Time // when wantWatched last did anything; the poller's
	links      links
	kept       atomic.Int64 // files of processes that are kept open
	meters     []meter      // by the kinds' index
	guestCalls atomic.Uint64
}

// entry is the cache of one VM.
type entry struct {
	vm   VM
	gone chan struct{} // closed when the VM is removed

	slow    atomic.Pointer[slowStats]
	process keptProcess
	cpu     sampler
	guest   patience
	inside  atomic.Pointer[guestFigures]
	tick    int64                    // the tick of the wheel at which it is due; 0: none
	bare    atomic.Uint64            // the run that has no overlay
	answers atomic.Pointer[[]cached] // by the kinds' index; nil until a read
	probed  memory
}

// cached returns the answer of a kind.
func (e *entry) cached(k *kind) *cached {
	all := e.answers.Load()
	if all == nil {
		fresh := make([]cached, len(kinds))
		if e.answers.CompareAndSwap(nil, &fresh) {
			all = &fresh
		} else {
			all = e.answers.Load()
		}
	}
	return &(*all)[k.index]
}

// known returns the answer of a kind to the epoch of s, however old; nil if there is none.
func (e *entry) known(k *kind, s *vmm.Snapshot) any {
	if e.answers.Load() == nil {
		return nil
	}
	return e.cached(k).known(epochOf(s))
}

// slowStats is the result of the slow poll, and the run that it belongs to.
type slowStats struct {
	run   uint64
	stats *Stats
}

var errClosed = errors.New("the daemon is ending")

// New starts the poller; Close ends it and waits for every collection in flight.
func New(o Options) *Collector {
	c := newCollector(o)
	c.exists = func(serial uint64) bool { return o.Manager.BySerial(serial) != nil }
	c.each = func(visit func(VM)) {
		for _, v := range o.Manager.VMs() {
			visit(v)
		}
	}
	c.find = func(serial uint64) VM {
		if v := o.Manager.BySerial(serial); v != nil {
			return v
		}
		return nil
	}
	o.Manager.OnChange(func(e vmm.Event) {
		switch e.What {
		case vmm.EventRemove:
			c.forget(e.Serial)
		case vmm.EventState:
			c.stateChanged(e.Serial)
			c.letGoEnded(e.Serial)
		}
	}, c.reconcile)
	c.reconcile() // with what was adopted
	c.start(c.poller)
	return c
}

// newCollector returns one without a manager and without its poller.
func newCollector(o Options) *Collector {
	c := &Collector{
		log:          o.Log,
		statsMaxAge:  cmp.Or(o.StatsMaxAge, defaultMaxAge),
		portsMaxAge:  cmp.Or(o.PortsMaxAge, 2*defaultMaxAge),
		healthMaxAge: cmp.Or(o.HealthMaxAge, defaultMaxAge),
		pollInterval: cmp.Or(o.PollInterval, 10*time.Second),
		guestTimeout: guestTimeout,
		now:          time.Now,
		exists:       func(uint64) bool { return true },
		each:         func(func(VM)) {},
		find:         func(uint64) VM { return nil },
		proc:         "/proc",
		groups:       findCgroups("/proc"),
		mostKept:     mostKept(),
		prober:       newProber(),
		probes:       make(chan struct{}, probesInAll),
		calls:        make(chan struct{}, callsInAll),
		warming:      make(chan struct{}, warmInAll),
		doubting:     make(chan struct{}, doubtInAll),
		wake:         make(chan struct{}, 1),
		entries:      map[uint64]*entry{},
		watched:      map[uint64]int{},
		untold:       map[uint64]news{},
		meters:       newMeters(),
	}
	if o.Network != nil {
		c.links.dump = o.Network.LinkStats
	}
	if c.log == nil {
		c.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.began = c.now()
	return c
}

// Close ends the poller and every collection in flight, and returns when they have ended. Their
// readers get an error, as do later ones.
func (c *Collector) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
	c.prober.CloseIdleConnections()
	c.mu.RLock()
	entries := slices.Collect(maps.Values(c.entries))
	c.mu.RUnlock()
	for _, e := range entries {
		e.process.drop(c, true)
	}
}

// start runs f in a goroutine that Close waits for; false when the collector is closed.
func (c *Collector) start(f func()) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return false
	}
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		f()
	}()
	return true
}

// entry returns the cache of v, which it makes if need be; vmm.ErrNotFound when v was removed.
func (c *Collector) entry(v VM) (*entry, error) {
	serial := v.Serial()
	c.mu.RLock()
	e := c.entries[serial]
	c.mu.RUnlock()
	if e != nil {
		return e, nil
	}
	c.mu.Lock()
	if e = c.entries[serial]; e == nil {
		e = &entry{vm: v, gone: make(chan struct{})}
		c.entries[serial] = e
	}
	c.mu.Unlock()
	// The event of the removal may have been before the entry.
	if !c.exists(serial) {
		c.forget(serial)
		return nil, fmt.Errorf("cannot read %s: removed: %w", v.Snapshot().Name, vmm.ErrNotFound)
	}
	return e, nil
}

// reconcile makes up for missed events: it drops removed VMs and publishes the others' health.
func (c *Collector) reconcile() {
	c.mu.RLock()
	serials := slices.Collect(maps.Keys(c.entries))
	c.mu.RUnlock()
	for _, serial := range serials {
		if !c.exists(serial) {
			c.forget(serial)
		}
	}
	c.each(func(v VM) {
		if s := v.Snapshot().State; s.Alive() || s == vmm.Starting || v.LastHealth() != "" {
			c.stateChanged(v.Serial())
		}
	})
}

// letGoEnded closes the files of a process that has ended.
func (c *Collector) letGoEnded(serial uint64) {
	c.mu.RLock()
	e := c.entries[serial]
	c.mu.RUnlock()
	if e != nil && !e.vm.Snapshot().State.Alive() {
		e.process.drop(c, false)
	}
}

// forget drops the cache of a removed VM and ends the waits for it.
func (c *Collector) forget(serial uint64) {
	c.mu.Lock()
	e := c.entries[serial]
	if e != nil {
		close(e.gone)
		delete(c.entries, serial)
	}
	c.mu.Unlock()
	if e != nil {
		c.hot.remove(e)
		e.process.drop(c, true)
	}
}

// Known returns what the cache holds of a VM, however old, and never collects. Stats are nil if it
// holds none of this run and state; those of the slow poll have process figures only. The health is
// the one last published.
func (c *Collector) Known(v VM) (stats *Stats, status, reason string) {
	c.mu.RLock()
	e := c.entries[v.Serial()]
	c.mu.RUnlock()
	s := v.Snapshot()
	if status, reason = passive(s); status == "" {
		status, reason, _ = strings.Cut(v.LastHealth(), " ")
		if status != Unhealthy {
			status, reason = Healthy, "" // ready: the poller publishes that in a moment
		}
	}
	if e == nil {
		return nil, status, reason
	}
	stats, _ = e.known(statsKind, s).(*Stats)
	slow := e.slow.Load()
	if s.State.Alive() && slow != nil && slow.run == s.Run &&
		(stats == nil || stats.Collected.Before(slow.stats.Collected)) {
		stats = slow.stats
	}
	return stats, status, reason
}
