package collector

import (
	"cmp"
	"context"
	"slices"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
)

// Stats are the figures of one VM. A nil pointer stands for a source that is missing.
type Stats struct {
	Collected      time.Time
	State          vmm.State
	Uptime         *float64 // seconds since the VMM was started
	CPUPercent     *float64 // of one core, from CPUFrom to CPUTo: two samples of the same process
	CPUFrom, CPUTo time.Time
	CPUUsec        *uint64
	RSSBytes       *int64
	VSZBytes       *int64
	OverlayBytes   *int64 // allocated
	WorkBytes      *int64 // allocated

	DiskReadBytes, DiskWriteBytes, DiskReadOps, DiskWriteOps *uint64

	// As the guest sees them: rx is what it received.
	NetRxBytes, NetTxBytes, NetRxPackets, NetTxPackets *uint64

	GroupCPUUsec     *uint64      // of the cgroup, if the VM has one of its own
	GroupMemoryBytes *int64       // charged to it
	Guest            *guest.Stats // nil if the agent did not answer; at most 5 max_ages older
}

// source is one row of the table of sources of Stats. A file of this package registers each.
type source struct {
	// bound is how long fill may block. Sources are asked in the order of their bounds, the longest
	// first: then the figures of most are of the moment in Stats.Collected.
	bound time.Duration
	// idle reports whether fill has nothing to wait for. Nil: it never has.
	idle func(*task) bool
	// fill sets the figures of the source, and leaves out those that are missing.
	fill    func(context.Context, *task, *Stats)
	metrics []Metric
}

// sources is the table. Nothing changes it after the package's initialization.
var sources []source

func addSource(s source) struct{} {
	sources = append(sources, s)
	slices.SortStableFunc(sources, func(a, b source) int { return cmp.Compare(b.bound, a.bound) })
	return struct{}{}
}

var statsKind = register(kind{
	name: "stats", noun: "stats", polled: true, asks: asksAlso, serves: always,
	maxAge: func(c *Collector) time.Duration { return c.statsMaxAge },
	quick: func(t *task) bool {
		return !slices.ContainsFunc(sources, func(s source) bool {
			return s.idle != nil && !s.idle(t)
		})
	},
	collect: func(ctx context.Context, t *task) (any, error) {
		st := &Stats{State: t.s.State}
		for i := range sources {
			sources[i].fill(ctx, t, st)
		}
		st.Collected = t.c.now()
		return st, nil
	},
})

// Stats, Ports and Health return an answer no older than the kind's max_age, and collect one if
// need be. They wait until ctx ends at most, and for the guest 3 s (vmm.ErrTimeout). Results are
// shared and immutable. Ports of a VM that does not run, or is paused, is vmm.ErrNotRunning; Stats
// and Health of it succeed. A removed VM is vmm.ErrNotFound.
func (c *Collector) Stats(ctx context.Context, v VM) (*Stats, error) {
	return read[Stats](ctx, c, v, statsKind)
}

// Metric is one figure of each VM as Prometheus names it.
type Metric struct {
	Name, Help string
	Device     string // the label; a second series of the same name is the next Metric
	Counter    bool
	Value      func(*Stats) (value float64, known bool)
}

// Metrics returns the metrics of all sources; those of one name follow each other.
func Metrics() []Metric {
	var all []Metric
	for _, s := range sources {
		all = append(all, s.metrics...)
	}
	return all
}

// figure is a metric that is one of the Stats, divided by scale.
func figure[T int64 | uint64](name, help string, scale float64, get func(*Stats) *T) Metric {
	return Metric{Name: name, Help: help, Value: func(s *Stats) (float64, bool) {
		n := get(s)
		if n == nil {
			return 0, false
		}
		return float64(*n) / scale, true
	}}
}

// counter is a figure that only grows.
func counter(name, help string, scale float64, get func(*Stats) *uint64) Metric {
	m := figure(name, help, scale, get)
	m.Counter = true
	return m
}

func ptr[T any](v T) *T { return &v }
