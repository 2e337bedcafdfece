package fs

import (
	"bytes"
	"math"
	"strconv"
	"time"

	"banger/collector"
	"banger/internal/printable"
	"banger/internal/value"
)

// statsPairs returns the keys of `stats` that have a source.
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

// rendering is the text of one answer of the collector.
type rendering struct {
	stats *collector.Stats
	text  []byte
}

// rendered returns the file's last text if that was of the same answer. Most reads find the
// collector's cached answer, and rendering it costs more than all the rest of an open.
func (r *request) rendered(s *collector.Stats, render func() ([]byte, error)) ([]byte, error) {
	if v, ok := r.server.renderings.Load(r.node); ok && v.(*rendering).stats == s {
		return v.(*rendering).text, nil
	}
	b, err := render()
	if err == nil {
		b = clipped(b)
		r.server.renderings.Store(r.node, &rendering{s, b})
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

// hostPairs returns sums over all VMs from the cache, and counts of the daemon's own work.
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
