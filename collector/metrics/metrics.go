// Package metrics renders the figures of the VMs and of the daemon as Prometheus metrics.
//
// It reads snapshots and the collector's cache, and asks no guest, VMM or disk. Figures that nobody
// has read and the slow poll does not collect are left out. Each VM has one series of each family,
// labelled vm, and device where there are several. Names and units follow Prometheus's conventions.
//
// The package runs no goroutines. The caller serves the HTTP handler.
package metrics

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"banger/collector"
	"banger/vmm"
)

// scrapesAtOnce bounds the scrapes over HTTP under way.
const scrapesAtOnce = 4

// Options of Metrics.
type Options struct {
	Manager   *vmm.Manager
	Collector *collector.Collector
	Version   string
	// Store returns counts since the daemon's start: transactions of the database of records, and
	// the calls that they answered. Nil: left out.
	Store func() (commits, calls uint64)
}

// Metrics gathers. Its methods may be called from many goroutines.
type Metrics struct {
	o    Options // immutable
	own  *prometheus.Registry
	size atomic.Int64 // bytes, about, of the next text
}

// New returns one with the daemon's own metrics registered.
func New(o Options) *Metrics {
	m := &Metrics{o: o, own: prometheus.NewRegistry()}
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "banger_build_info",
		Help:        "1, labelled with the daemon's version.",
		ConstLabels: prometheus.Labels{"version": o.Version}})
	info.Set(1)
	m.own.MustRegister(info, o.Collector, transitions{o.Manager}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if o.Store != nil {
		m.own.MustRegister(
			prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "banger_store_commits_total",
				Help: "Transactions of the database of records."},
				func() float64 { commits, _ := o.Store(); return float64(commits) }),
			prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "banger_store_calls_total",
				Help: "Calls that the transactions answered; those made at the same time share one."},
				func() float64 { _, calls := o.Store(); return float64(calls) }))
	}
	return m
}

// Register adds a part of the daemon's own metrics, before the first Gather.
func (m *Metrics) Register(c prometheus.Collector) error { return m.own.Register(c) }

// each calls write with every family in the order of their names. A family is valid during the
// call: those of the VMs share their memory. The registry does not make them, as its checks of some
// hundred thousand series would cost several times what the series do.
func (m *Metrics) each(write func(*dto.MetricFamily) error) error {
	own, err := m.own.Gather() // sorted
	if err != nil {
		return fmt.Errorf("cannot gather the daemon's own metrics: %w", err)
	}
	vms := m.vms()
	for len(own) > 0 || len(vms.names) > 0 {
		if len(vms.names) == 0 || len(own) > 0 && own[0].GetName() < vms.names[0] {
			err = write(own[0])
			own = own[1:]
		} else if f := vms.next(); len(f.Metric) > 0 {
			err = write(f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Text returns all metrics in Prometheus's text format, version 0.0.4.
func (m *Metrics) Text() ([]byte, error) {
	b := bytes.NewBuffer(make([]byte, 0, m.size.Load()))
	err := m.each(func(f *dto.MetricFamily) error {
		if _, err := expfmt.MetricFamilyToText(b, f); err != nil {
			return fmt.Errorf("cannot write %s: %w", f.GetName(), err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	m.size.Store(int64(b.Len() + b.Len()/8)) // so that the next one need not grow
	return b.Bytes(), nil
}

// formats are what Handler offers, in order of preference.
var formats = expfmt.DefaultOpenMetricsAcceptedFormats()

// Handler serves the metrics over HTTP, as OpenMetrics on request. It serves a few scrapes at once;
// others get 503.
func (m *Metrics) Handler() http.Handler {
	slots := make(chan struct{}, scrapesAtOnce)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			http.Error(w, "too many scrapes at once", http.StatusServiceUnavailable)
			return
		}
		format := expfmt.NegotiateAccept(r.Header, formats...)
		w.Header().Set("Content-Type", string(format))
		out := bufio.NewWriterSize(w, 64<<10)
		e := expfmt.NewEncoder(out, format)
		err := m.each(e.Encode)
		if closer, ok := e.(expfmt.Closer); err == nil && ok {
			err = closer.Close()
		}
		if err == nil {
			err = out.Flush()
		}
		if err != nil {
			panic(http.ErrAbortHandler) // a scraper must see that the text is not whole
		}
	})
}

// transitions counts the commands to VMs.
type transitions struct{ manager *vmm.Manager }

var transitionsDesc = prometheus.NewDesc("banger_transitions_total",
	"Transitions of VMs' states that have ended.", []string{"command", "result"}, nil)

func (transitions) Describe(ch chan<- *prometheus.Desc) { ch <- transitionsDesc }

func (t transitions) Collect(ch chan<- prometheus.Metric) {
	for _, c := range t.manager.Transitions() {
		count := func(n float64, result string) {
			ch <- prometheus.MustNewConstMetric(transitionsDesc, prometheus.CounterValue, n,
				string(c.Command), result)
		}
		count(float64(c.Done), "done")
		count(float64(c.Failed), "failed")
	}
}
