// Package collector reads what VMs do: process figures, disks, links, the guest's agent.
//
// There is one cache entry per VM and kind, one collection in flight for all who ask (cached.go), and a
// poller that keeps warm what was read in the last ten seconds (poller.go). No lock of a VM's life is held while
// a guest is asked. A reader that goes away ends its wait, not the collection of the others.
//
// Each kind has its file: what is fetched there is parsed by pure functions, and what comes from a guest is
// bounded in size and time. The collector knows neither files nor errnos and runs no other programs.
//
// Goroutines: one poller for all VMs, and one per collection in flight; [Collector.Close] waits for all of them.
package collector

import (
	"context"
	"encoding/json"
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

// linkShare of stats_max_age is how old the links' figures in fresh stats may be.
const linkShare = 8

// Bounds of what a collection may take.
const (
	guestTimeout  = 3 * time.Second        // for one answer of an agent
	guestBriefly  = 100 * time.Millisecond // for an agent that has just been silent for guestTimeout
	guestDoubt    = 10 * time.Second       // how long an agent is given only guestBriefly
	guestSilence  = time.Second            // how long an agent that did not answer is not asked at all
	firstRest     = time.Second            // how long the poller leaves an agent alone that did not answer, then twice as long
	longestRest   = 30 * time.Second
	callsInAll    = 4096                   // requests to agents under way
	blockTimeout  = 300 * time.Millisecond // for the VMM's block figures
	probeTimeout  = 750 * time.Millisecond // for one request to one port
	probeBudget   = 2 * probeTimeout       // for the probes of one VM, if the agent took long
	probesPerVM   = 16
	probesInAll   = 64
	maxListeners  = 4096
	keepWarm      = 10 * time.Second // after the last read
	warmInAll     = 256              // collections that the poller has in flight at most
	doubtInAll    = 64               // the same, of guests that did not answer the last time
	defaultMaxAge = time.Second
)

// subject is what the collector needs of a *vmm.VM.
type subject interface {
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
	each         func(visit func(subject))
	find         func(serial uint64) subject // nil if there is none
	proc         string                      // root of procfs
	groups       *cgroups
	mostKept     int64 // files of processes that may be kept open
	prober       *http.Transport
	probes       chan struct{} // slots for probes, of all VMs
	calls        chan struct{} // slots for requests to agents
	warming      chan struct{} // slots for the poller's collections
	doubting     chan struct{} // the same, of guests that did not answer the last time
	wake         chan struct{} // tells the poller that something became hot or changed its state
	ctx          context.Context
	cancel       context.CancelFunc
	wg           sync.WaitGroup

	mu      sync.RWMutex
	closed  bool              // guarded by mu
	entries map[uint64]*entry // guarded by mu; by serial
	hot     map[uint64]*entry // guarded by mu; read lately, kept warm
	hotList []*entry          // guarded by mu; those of hot, nil to be made anew; what it holds is not changed
	watched map[uint64]int    // guarded by mu; by how many the health is watched, by serial, 0 being everybody's
	untold  map[uint64]news   // guarded by mu; VMs whose health follows from their state and may change again, and what was last told
	changes uint64            // guarded by mu; counts stateChanged

	links      links
	kept       atomic.Int64 // files of processes that are kept open
	meters     *meters
	guestCalls atomic.Uint64
}

// entry is what is kept of one VM.
type entry struct {
	vm   subject
	gone chan struct{} // closed when the VM is removed

	slow    atomic.Pointer[slowStats]
	process keptProcess
	cpu     sampler
	guest   patience
	due     atomic.Int64            // when the poller looks again, nanoseconds after the collector began
	bare    atomic.Uint64           // the run that was found to have no overlay
	read    atomic.Pointer[answers] // nil until somebody reads: most VMs of many are only polled
}

// answers are what readers of one VM share.
type answers struct {
	stats      cached[Stats]
	ports      cached[Ports]
	health     cached[Health]
	listeners  cached[portSet]
	vmmMetrics cached[json.RawMessage]
	probed     memory
}

// answers gives what readers of the VM share.
func (c *Collector) answers(e *entry) *answers {
	if a := e.read.Load(); a != nil {
		return a
	}
	a := new(answers)
	a.stats.init(&c.meters.stats, &e.due)
	a.ports.init(&c.meters.ports, &e.due)
	a.health.init(&c.meters.health, &e.due)
	a.listeners.init(&c.meters.listeners, &e.due)
	a.vmmMetrics.init(&c.meters.vmmMetrics, &e.due)
	if !e.read.CompareAndSwap(nil, a) {
		return e.read.Load()
	}
	return a
}

// slowStats is what the slow poll found, and in which run.
type slowStats struct {
	run   uint64
	stats *Stats
}

var errClosed = errors.New("the daemon is ending")

// New starts the poller; Close ends it and waits for every collection in flight.
func New(o Options) *Collector {
	c := newCollector(o)
	c.exists = func(serial uint64) bool { return o.Manager.BySerial(serial) != nil }
	c.each = func(visit func(subject)) {
		for _, v := range o.Manager.VMs() {
			visit(v)
		}
	}
	c.find = func(serial uint64) subject {
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

// newCollector makes one without a manager and without its poller.
func newCollector(o Options) *Collector {
	c := &Collector{
		log:          o.Log,
		statsMaxAge:  orElse(o.StatsMaxAge, defaultMaxAge),
		portsMaxAge:  orElse(o.PortsMaxAge, 2*defaultMaxAge),
		healthMaxAge: orElse(o.HealthMaxAge, defaultMaxAge),
		pollInterval: orElse(o.PollInterval, 10*time.Second),
		guestTimeout: guestTimeout,
		now:          time.Now,
		exists:       func(uint64) bool { return true },
		each:         func(func(subject)) {},
		find:         func(uint64) subject { return nil },
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
		hot:          map[uint64]*entry{},
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

func orElse(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// Close ends the poller and every collection in flight, and returns when they have ended.
// Their readers get an error, as do those who come later.
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

// entry finds or makes what is kept of v; vmm.ErrNotFound when v was removed.
func (c *Collector) entry(v subject) (*entry, error) {
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
	// The removal may have been told before the entry was there to be dropped.
	if !c.exists(serial) {
		c.forget(serial)
		return nil, fmt.Errorf("cannot read %s: removed: %w", v.Snapshot().Name, vmm.ErrNotFound)
	}
	return e, nil
}

// reconcile does what the events that were missed would have: drops the removed VMs and tells the others' health.
func (c *Collector) reconcile() {
	c.mu.RLock()
	serials := slices.Collect(maps.Keys(c.entries))
	c.mu.RUnlock()
	for _, serial := range serials {
		if !c.exists(serial) {
			c.forget(serial)
		}
	}
	c.each(func(v subject) {
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

// forget drops what is kept of a removed VM and ends the waits for it.
func (c *Collector) forget(serial uint64) {
	c.mu.Lock()
	e := c.entries[serial]
	if e != nil {
		close(e.gone)
		delete(c.entries, serial)
		delete(c.hot, serial)
		c.hotList = nil
	}
	c.mu.Unlock()
	if e != nil {
		e.process.drop(c, true)
	}
}

// Known gives what the cache holds of a VM, however old, nil where it holds nothing of this run and state, and the status and reason of the
// health that was last told, empty if none was; it never collects. Stats of the slow poll hold process figures only.
func (c *Collector) Known(v *vmm.VM) (stats *Stats, status, reason string) { return c.known(v) }

func (c *Collector) known(v subject) (stats *Stats, status, reason string) {
	c.mu.RLock()
	e := c.entries[v.Serial()]
	c.mu.RUnlock()
	s := v.Snapshot()
	if status, reason = passive(s); status == "" {
		if status, reason, _ = strings.Cut(v.LastHealth(), " "); status != Healthy && status != Unhealthy {
			status, reason = "", ""
		}
	}
	if e == nil {
		return nil, status, reason
	}
	if a := e.read.Load(); a != nil {
		stats = a.stats.known(epochOf(s))
	}
	slow := e.slow.Load()
	if s.State.Alive() && slow != nil && slow.run == s.Run && (stats == nil || stats.Collected.Before(slow.stats.Collected)) {
		stats = slow.stats
	}
	return stats, status, reason
}

// Ports is the table of listeners, sorted and without duplicates.
type Ports struct {
	Collected time.Time
	Rows      []Port
}

// Port is one row of `ports`. Text is as the guest gave it; whoever shows it escapes it.
type Port struct {
	Scheme   string // http https tcp udp
	Port     int
	Endpoint string
	Address  string // bind address
	PID      int
	Process  string
	Command  string
}

// Health is one answer about a VM's health.
type Health struct {
	Collected time.Time
	Status    string // healthy unhealthy starting paused stopped
	Reason    string // of unhealthy
}

func (h *Health) String() string {
	if h.Reason == "" {
		return h.Status
	}
	return h.Status + " " + h.Reason
}
