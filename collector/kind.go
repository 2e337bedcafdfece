package collector

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"banger/vmm"
	"banger/vmm/guest"
)

// kind is one row of the table of answers that readers of a VM share. A file of this package
// registers each.
type kind struct {
	name    string                                    // its label in metrics
	noun    string                                    // in errors: cannot read NOUN of VM
	maxAge  func(*Collector) time.Duration            // how long an answer is fresh
	serves  func(*vmm.Snapshot) bool                  // whether a VM in this state has an answer
	polled  bool                                      // the poller keeps what was read fresh
	asks    asks                                      // the part of the guest in it
	quick   func(*task) bool                          // the collection cannot block; nil: it can
	collect func(context.Context, *task) (any, error) // returns a pointer to an immutable value

	index int // of the row
}

// asks is the part of the guest's agent in a collection.
type asks int

const (
	asksNever asks = iota
	asksAlso       // a guest that rests is left out
	asksOnly       // the poller does not collect from a guest that rests
)

// kinds is the table. Nothing changes it after the package's initialization.
var kinds []*kind

func register(k kind) *kind {
	k.index = len(kinds)
	kinds = append(kinds, &k)
	return &k
}

func always(*vmm.Snapshot) bool    { return true }
func alive(s *vmm.Snapshot) bool   { return s.State.Alive() }
func running(s *vmm.Snapshot) bool { return s.State == vmm.Running }
func ready(s *vmm.Snapshot) bool   { return s.State == vmm.Running && s.Ready }

// task is the collection of one kind's answer about the VM that a snapshot shows.
type task struct {
	*kind
	c        *Collector
	e        *entry
	s        *vmm.Snapshot
	byPoller bool          // the poller begins it: a guest that rests is not asked
	atOnce   bool          // the poller itself collects: nothing may block
	known    *guest.Stats  // with atOnce: the guest's figures as quick found them
	slots    chan struct{} // where the poller acquired a slot for it; nil: it has none
}

// run is the one place that counts, times and words the failure of collections.
func (t *task) run(ctx context.Context, begun time.Time) (answer any, ended time.Time, err error) {
	m := &t.c.meters[t.index]
	m.collections.Add(1)
	answer, err = t.collect(ctx, t)
	if ctx.Err() != nil {
		err = fmt.Errorf("cannot read %s of %s: %w", t.noun, t.s.Name, ctx.Err())
	}
	if err != nil {
		answer = nil
		m.failures.Add(1)
	}
	ended = t.c.now()
	m.duration.Observe(ended.Sub(begun).Seconds())
	return answer, ended, err
}

// read returns an answer no older than the kind's max_age. See Collector.Stats.
func read[T any](ctx context.Context, c *Collector, v VM, k *kind) (*T, error) {
	e, err := c.entry(v)
	if err != nil {
		return nil, err
	}
	s := v.Snapshot()
	if !k.serves(s) {
		return nil, fmt.Errorf("cannot read %s of %s, it is %s: %w", k.noun, s.Name, s.State,
			vmm.ErrNotRunning)
	}
	return get[T](ctx, &task{kind: k, c: c, e: e, s: s}, k.maxAge(c))
}

// get is read for a snapshot and an age of the caller's choice.
func get[T any](ctx context.Context, t *task, maxAge time.Duration) (*T, error) {
	answer, err := t.e.cached(t.kind).get(ctx, t, maxAge)
	value, _ := answer.(*T)
	return value, err
}

// meter counts the collections of one kind.
type meter struct {
	collections, hits, failures atomic.Uint64
	duration                    prometheus.Histogram // of collections, seconds
}

// durationBuckets span from a figure of the host to a guest that does not answer, seconds.
var durationBuckets = []float64{0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10}

// newMeters returns one meter for each row of kinds.
func newMeters() []meter {
	meters := make([]meter, len(kinds))
	for i, k := range kinds {
		meters[i].duration = prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "banger_collection_duration_seconds", Help: "How long collections took.",
			ConstLabels: prometheus.Labels{"kind": k.name}, Buckets: durationBuckets,
		})
	}
	return meters
}

// totals is the table of counters: the daemon's own work, not the VMs' figures. The rows with a
// count have one series for each kind.
var totals = []struct {
	desc  *prometheus.Desc
	count func(*meter) *atomic.Uint64
}{
	{prometheus.NewDesc("banger_collections_total", "Collections begun.", []string{"kind"}, nil),
		func(m *meter) *atomic.Uint64 { return &m.collections }},
	{prometheus.NewDesc("banger_cache_hits_total", "Reads answered without a collection.",
		[]string{"kind"}, nil), func(m *meter) *atomic.Uint64 { return &m.hits }},
	{prometheus.NewDesc("banger_collection_errors_total", "Collections that failed.",
		[]string{"kind"}, nil), func(m *meter) *atomic.Uint64 { return &m.failures }},
}

var guestCallsDesc = prometheus.NewDesc("banger_guest_calls_total",
	"Requests sent to guests' agents.", nil, nil)

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector. It does not block.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for i, k := range kinds {
		for _, row := range totals {
			count(row.desc, row.count(&c.meters[i]).Load(), k.name)
		}
		c.meters[i].duration.Collect(ch)
	}
	count(guestCallsDesc, c.guestCalls.Load())
}

// Totals count since the daemon's start. The slow poll, which asks no guest, is not counted.
type Totals struct {
	Collections uint64 // collections begun, of all kinds
	CacheHits   uint64 // reads answered without one
	Errors      uint64 // collections that failed
	GuestCalls  uint64 // requests sent to agents
}

// Totals returns the daemon's own counters for the host's `stats`.
func (c *Collector) Totals() Totals {
	t := Totals{GuestCalls: c.guestCalls.Load()}
	for i := range c.meters {
		m := &c.meters[i]
		t.Collections += m.collections.Load()
		t.CacheHits += m.hits.Load()
		t.Errors += m.failures.Load()
	}
	return t
}
