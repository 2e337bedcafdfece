package fs

import (
	"bytes"
	"math"
	"strconv"
	"time"

	"banger/collector"
	"banger/internal/printable"
	"banger/internal/value"
	"banger/vmm"
)

// statsPairs gives the keys of `stats` whose source is there.
func statsPairs(s *collector.Stats) []pair {
	pairs := []pair{
		{"collected", seconds(s.Collected), value.FormatTime(s.Collected)},
		{key: "state", value: s.State},
	}
	pairs = addFloat(pairs, "uptime", s.Uptime)
	pairs = addFloat(pairs, "cpu_percent", s.CPUPercent)
	if s.CPUPercent != nil {
		interval := s.CPUTo.Sub(s.CPUFrom).Seconds()
		pairs = addFloat(pairs, "cpu_interval", &interval)
	}
	pairs = add(pairs, "cpu_usec", s.CPUUsec)
	pairs = add(pairs, "rss_bytes", s.RSSBytes)
	pairs = add(pairs, "vsz_bytes", s.VSZBytes)
	pairs = add(pairs, "system_overlay_bytes", s.OverlayBytes)
	pairs = add(pairs, "work_disk_bytes", s.WorkBytes)
	pairs = add(pairs, "disk_read_bytes", s.DiskReadBytes)
	pairs = add(pairs, "disk_write_bytes", s.DiskWriteBytes)
	pairs = add(pairs, "disk_read_ops", s.DiskReadOps)
	pairs = add(pairs, "disk_write_ops", s.DiskWriteOps)
	pairs = add(pairs, "net_rx_bytes", s.NetRxBytes)
	pairs = add(pairs, "net_tx_bytes", s.NetTxBytes)
	pairs = add(pairs, "net_rx_packets", s.NetRxPackets)
	pairs = add(pairs, "net_tx_packets", s.NetTxPackets)
	pairs = add(pairs, "cgroup_cpu_usec", s.GroupCPUUsec)
	pairs = add(pairs, "cgroup_memory_bytes", s.GroupMemoryBytes)
	if g := s.Guest; g != nil {
		pairs = append(pairs,
			pair{key: "guest_mem_total_bytes", value: g.MemTotal},
			pair{key: "guest_mem_available_bytes", value: g.MemAvailable})
		pairs = addFloat(pairs, "guest_load1", &g.Load1)
		pairs = append(pairs, pair{key: "guest_procs", value: g.Procs})
		pairs = addFloat(pairs, "guest_uptime", &g.Uptime)
		if g.DiskTotal > 0 {
			pairs = append(pairs,
				pair{key: "guest_disk_used_bytes", value: g.DiskUsed},
				pair{key: "guest_disk_total_bytes", value: g.DiskTotal})
		}
	}
	return pairs
}

func add[T int64 | uint64](pairs []pair, key string, v *T) []pair {
	if v == nil {
		return pairs
	}
	return append(pairs, pair{key: key, value: *v})
}

func addFloat(pairs []pair, key string, v *float64) []pair {
	if v == nil || math.IsNaN(*v) || math.IsInf(*v, 0) {
		return pairs
	}
	return append(pairs, pair{key, round(*v), strconv.FormatFloat(*v, 'f', 2, 64)})
}

func round(f float64) float64     { return math.Round(f*100) / 100 }
func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func statsShow(r *request) ([]byte, error) {
	s, err := r.server.o.Collector.Stats(r.ctx, r.vm)
	if err != nil {
		return nil, err
	}
	return r.rendered(s, func() ([]byte, error) { return flat(statsPairs(s)), nil })
}

func statsJSONShow(r *request) ([]byte, error) {
	s, err := r.server.o.Collector.Stats(r.ctx, r.vm)
	if err != nil {
		return nil, err
	}
	return r.rendered(s, func() ([]byte, error) { return object(statsPairs(s)) })
}

// text is what a file showed of one answer of the collector.
type text struct {
	of    *collector.Stats
	bytes []byte
}

// rendered gives what the file last showed if that was of the same answer: most reads find the cache's, and writing it as text takes
// longer than all the rest of an open.
func (r *request) rendered(of *collector.Stats, render func() ([]byte, error)) ([]byte, error) {
	if v, ok := r.server.texts.Load(r.node); ok && v.(*text).of == of {
		return v.(*text).bytes, nil
	}
	b, err := render()
	if err == nil {
		b = clipped(b)
		r.server.texts.Store(r.node, &text{of, b})
	}
	return b, err
}

func vmmMetricsShow(r *request) ([]byte, error) {
	b, err := r.server.o.Collector.VMMMetrics(r.ctx, r.vm)
	if err != nil {
		return nil, err
	}
	return append(bytes.Clone(printable.JSON(b)), '\n'), nil
}

func healthShow(r *request) ([]byte, error) {
	h, err := r.server.o.Collector.Health(r.ctx, r.vm)
	if err != nil {
		return nil, err
	}
	return line(sentence(h.String()))
}

func healthJSONShow(r *request) ([]byte, error) {
	h, err := r.server.o.Collector.Health(r.ctx, r.vm)
	if err != nil {
		return nil, err
	}
	return object([]pair{
		{key: "status", value: h.Status},
		{key: "reason", value: h.Reason},
		{key: "collected", value: seconds(h.Collected)},
	})
}

func portsShow(r *request) ([]byte, error) {
	r.vm.Touch()
	p, err := r.server.o.Collector.Ports(r.ctx, r.vm)
	if err != nil {
		return nil, err
	}
	var t table
	for _, p := range p.Rows {
		for _, c := range []string{p.Scheme, strconv.Itoa(p.Port), cell(p.Endpoint), cell(p.Address), strconv.Itoa(p.PID), cell(p.Process), escape(p.Command)} {
			t.add(c)
		}
		t.endRow()
	}
	return t.text(), nil
}

func portsJSONShow(r *request) ([]byte, error) {
	r.vm.Touch()
	p, err := r.server.o.Collector.Ports(r.ctx, r.vm)
	if err != nil {
		return nil, err
	}
	type port struct {
		Scheme   string `json:"scheme"`
		Port     int    `json:"port"`
		Endpoint string `json:"endpoint"`
		Address  string `json:"bind"`
		PID      int    `json:"pid"`
		Process  string `json:"process"`
		Command  string `json:"command"`
	}
	rows := make([]port, 0, len(p.Rows))
	for _, p := range p.Rows {
		rows = append(rows, port(p))
	}
	return jsonLine(rows)
}

// listed is one row of `list`; what is not known is nil.
type listed struct {
	Name       string    `json:"name"`
	State      vmm.State `json:"state"`
	Health     *string   `json:"health"`
	CPUPercent *float64  `json:"cpu_percent"`
	RSSBytes   *int64    `json:"rss_bytes"`
	Address    *string   `json:"address"`
	Uptime     *float64  `json:"uptime"`
	Image      string    `json:"image"`
}

// list is one pass over snapshots and the cache; it asks nobody.
func list(r *request) []listed {
	vms := r.server.o.Manager.VMs()
	rows := make([]listed, 0, len(vms))
	for _, v := range vms {
		s := v.Snapshot()
		row := listed{Name: s.Name, State: s.State, Image: s.Config.Image}
		stats, health, _ := r.server.o.Collector.Known(v)
		if health != "" {
			row.Health = &health
		}
		if stats != nil && s.State.Alive() {
			row.CPUPercent, row.RSSBytes = stats.CPUPercent, stats.RSSBytes
		}
		if a := s.GuestAddress(); a.IsValid() {
			text := a.String()
			row.Address = &text
		}
		if s.State.Alive() && !s.Since.IsZero() {
			up := round(time.Since(s.Since).Seconds())
			row.Uptime = &up
		}
		rows = append(rows, row)
	}
	return rows
}

func listShow(r *request) ([]byte, error) {
	rows := list(r)
	t := newTable(len(rows), 8, 8)
	for i := range rows {
		l := &rows[i]
		t.add(l.Name)
		t.add(string(l.State))
		t.add(orUnknown(l.Health))
		t.addFloat(l.CPUPercent)
		t.addInt(l.RSSBytes)
		t.add(orUnknown(l.Address))
		t.addFloat(l.Uptime)
		t.add(cell(l.Image))
		t.endRow()
	}
	return t.text(), nil
}

func orUnknown(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}

func listJSONShow(r *request) ([]byte, error) { return jsonLine(list(r)) }

// hostPairs sums what is known of all VMs, and counts the daemon's own work.
func hostPairs(r *request) []pair {
	var running int
	var cpu float64
	var rss int64
	vms := r.server.o.Manager.VMs()
	for _, v := range vms {
		if !v.Snapshot().State.Alive() {
			continue
		}
		running++
		if s, _, _ := r.server.o.Collector.Known(v); s != nil {
			if s.CPUPercent != nil {
				cpu += *s.CPUPercent
			}
			if s.RSSBytes != nil {
				rss += *s.RSSBytes
			}
		}
	}
	t := r.server.o.Collector.Totals()
	return []pair{
		{key: "vms", value: len(vms)},
		{key: "running", value: running},
		{"cpu_percent", round(cpu), strconv.FormatFloat(cpu, 'f', 2, 64)},
		{key: "rss_bytes", value: rss},
		{key: "collections", value: t.Collections},
		{key: "cache_hits", value: t.CacheHits},
		{key: "collection_errors", value: t.Errors},
		{key: "guest_calls", value: t.GuestCalls},
	}
}

func hostStatsShow(r *request) ([]byte, error)     { return flat(hostPairs(r)), nil }
func hostStatsJSONShow(r *request) ([]byte, error) { return object(hostPairs(r)) }
