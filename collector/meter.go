package collector

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// meter counts the collections of one kind.
type meter struct {
	collections, hits, failures atomic.Uint64
	duration                    prometheus.Histogram // of collections, seconds
}

// meters are one for each kind of answer.
type meters struct{ stats, ports, health, listeners, vmmMetrics meter }

// durationBuckets go from a figure of the host's to a guest that answers nothing, seconds.
var durationBuckets = []float64{0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10}

func newMeters() *meters {
	m := new(meters)
	m.each(func(kind string, k *meter) {
		k.duration = prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "banger_collection_duration_seconds", Help: "How long collections took.",
			ConstLabels: prometheus.Labels{"kind": kind}, Buckets: durationBuckets,
		})
	})
	return m
}

func (m *meters) each(visit func(kind string, k *meter)) {
	visit("stats", &m.stats)
	visit("ports", &m.ports)
	visit("health", &m.health)
	visit("listeners", &m.listeners)
	visit("vmm_metrics", &m.vmmMetrics)
}

// ended notes a collection that took so long.
func (k *meter) ended(took time.Duration, err error) {
	k.duration.Observe(took.Seconds())
	if err != nil {
		k.failures.Add(1)
	}
}

var (
	collectionsDesc = prometheus.NewDesc("banger_collections_total", "Collections begun.", []string{"kind"}, nil)
	hitsDesc        = prometheus.NewDesc("banger_cache_hits_total", "Reads answered without a collection.", []string{"kind"}, nil)
	failuresDesc    = prometheus.NewDesc("banger_collection_errors_total", "Collections that failed.", []string{"kind"}, nil)
	guestCallsDesc  = prometheus.NewDesc("banger_guest_calls_total", "Requests sent to guests' agents.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- collectionsDesc
	ch <- hitsDesc
	ch <- failuresDesc
	ch <- guestCallsDesc
	c.meters.each(func(_ string, k *meter) { k.duration.Describe(ch) })
}

// Collect implements prometheus.Collector: the daemon's own work, not the VMs' figures. It does not block.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, n uint64, kinds ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), kinds...)
	}
	c.meters.each(func(kind string, k *meter) {
		count(collectionsDesc, k.collections.Load(), kind)
		count(hitsDesc, k.hits.Load(), kind)
		count(failuresDesc, k.failures.Load(), kind)
		k.duration.Collect(ch)
	})
	count(guestCallsDesc, c.guestCalls.Load())
}

// Totals count since the daemon's start. The slow poll, which asks no guest, is not counted.
type Totals struct {
	Collections uint64 // collections begun, of all kinds
	CacheHits   uint64 // reads answered without one
	Errors      uint64 // collections that failed
	GuestCalls  uint64 // requests sent to agents
}

// Totals are the daemon's own counters for the host's `stats`.
func (c *Collector) Totals() Totals {
	t := Totals{GuestCalls: c.guestCalls.Load()}
	c.meters.each(func(_ string, k *meter) {
		t.Collections += k.collections.Load()
		t.CacheHits += k.hits.Load()
		t.Errors += k.failures.Load()
	})
	return t
}
