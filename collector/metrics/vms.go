package metrics

import (
	"math"
	"slices"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"banger/collector"
	"banger/vmm"
	"banger/vmm/guest"
)

// vm is what is known of one VM at the moment of a scrape.
type vm struct {
	snap   *vmm.Snapshot
	stats  *collector.Stats // nil where nothing is known
	health string           // its status, empty if it is not known
}

// alive is the stats of a VM that has a process, nil otherwise.
func (v *vm) alive() *collector.Stats {
	if !v.snap.State.Alive() {
		return nil
	}
	return v.stats
}

// guest is what the agent said, nil where it was not asked.
func (v *vm) guest() *guest.Stats {
	if s := v.alive(); s != nil {
		return s.Guest
	}
	return nil
}

// family is one metric of every VM. value gives false where it is not known.
type family struct {
	name, help string
	device     string // a second series of the same name follows in the next row
	counter    bool
	value      func(*vm) (float64, bool)
}

// families are sorted by name in the output; rows of one name follow each other.
var families = []family{
	state("banger_vm_running", "1 while the VM's CPUs run.", vmm.Running),
	state("banger_vm_paused", "1 while the VM is paused.", vmm.Paused),
	state("banger_vm_failed", "1 when the VM could not start or its VMM died.", vmm.Failed),
	{name: "banger_vm_healthy", help: "1 when the guest's agent answered last time it was asked, 0 when it did not.", value: healthy},
	{name: "banger_vm_cpus", help: "CPUs that the VM is given.", value: func(v *vm) (float64, bool) { return float64(v.snap.Config.CPUs), true }},
	{name: "banger_vm_memory_bytes", help: "Memory that the VM is given.", value: func(v *vm) (float64, bool) { return float64(v.snap.Config.Memory), true }},
	{name: "banger_vm_start_time_seconds", help: "When the VM was started, in Unix time.", value: func(v *vm) (float64, bool) {
		return float64(v.snap.Started.UnixMilli()) / 1000, v.snap.State.Alive() && !v.snap.Started.IsZero()
	}},
	cpuTime("banger_vm_cpu_seconds_total", "CPU time of the VMM's process, user and system.", func(s *collector.Stats) *uint64 { return s.CPUUsec }),
	figure("banger_vm_resident_memory_bytes", "Resident memory of the VMM's process.", false, func(s *collector.Stats) *int64 { return s.RSSBytes }),
	figure("banger_vm_virtual_memory_bytes", "Virtual memory of the VMM's process.", false, func(s *collector.Stats) *int64 { return s.VSZBytes }),
	disk("overlay", func(s *collector.Stats) *int64 { return s.OverlayBytes }),
	disk("work", func(s *collector.Stats) *int64 { return s.WorkBytes }),
	figure("banger_vm_disk_read_bytes_total", "Bytes that the guest read from its disks.", true, func(s *collector.Stats) *uint64 { return s.DiskReadBytes }),
	figure("banger_vm_disk_written_bytes_total", "Bytes that the guest wrote to its disks.", true, func(s *collector.Stats) *uint64 { return s.DiskWriteBytes }),
	figure("banger_vm_disk_reads_completed_total", "Reads of the guest's disks that ended.", true, func(s *collector.Stats) *uint64 { return s.DiskReadOps }),
	figure("banger_vm_disk_writes_completed_total", "Writes to the guest's disks that ended.", true, func(s *collector.Stats) *uint64 { return s.DiskWriteOps }),
	figure("banger_vm_network_receive_bytes_total", "Bytes that the guest received.", true, func(s *collector.Stats) *uint64 { return s.NetRxBytes }),
	figure("banger_vm_network_transmit_bytes_total", "Bytes that the guest sent.", true, func(s *collector.Stats) *uint64 { return s.NetTxBytes }),
	figure("banger_vm_network_receive_packets_total", "Packets that the guest received.", true, func(s *collector.Stats) *uint64 { return s.NetRxPackets }),
	figure("banger_vm_network_transmit_packets_total", "Packets that the guest sent.", true, func(s *collector.Stats) *uint64 { return s.NetTxPackets }),
	figure("banger_vm_cgroup_memory_bytes", "Memory charged to the VM's own cgroup.", false, func(s *collector.Stats) *int64 { return s.GroupMemoryBytes }),
	cpuTime("banger_vm_cgroup_cpu_seconds_total", "CPU time of the VM's own cgroup.", func(s *collector.Stats) *uint64 { return s.GroupCPUUsec }),
	inside("banger_vm_guest_memory_size_bytes", "Memory as the guest counts it.", func(g *guest.Stats) float64 { return float64(g.MemTotal) }),
	inside("banger_vm_guest_memory_available_bytes", "Memory that the guest could give to programs.", func(g *guest.Stats) float64 { return float64(g.MemAvailable) }),
	inside("banger_vm_guest_load1", "The guest's load, averaged over a minute.", func(g *guest.Stats) float64 { return g.Load1 }),
	inside("banger_vm_guest_processes", "Processes in the guest.", func(g *guest.Stats) float64 { return float64(g.Procs) }),
	inside("banger_vm_guest_uptime_seconds", "Time since the guest's kernel started.", func(g *guest.Stats) float64 { return g.Uptime }),
	filesystem("banger_vm_guest_filesystem_used_bytes", "Used on the guest's file systems.", func(g *guest.Stats) int64 { return g.DiskUsed }),
	filesystem("banger_vm_guest_filesystem_size_bytes", "Size of the guest's file systems.", func(g *guest.Stats) int64 { return g.DiskTotal }),
}

func state(name, help string, want vmm.State) family {
	return family{name: name, help: help, value: func(v *vm) (float64, bool) { return one(v.snap.State == want), true }}
}

func healthy(v *vm) (float64, bool) {
	return one(v.health == collector.Healthy), v.health == collector.Healthy || v.health == collector.Unhealthy
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// figure is one of the stats of a VM that has a process.
func figure[T int64 | uint64](name, help string, counter bool, get func(*collector.Stats) *T) family {
	return family{name: name, help: help, counter: counter, value: func(v *vm) (float64, bool) {
		s := v.alive()
		if s == nil || get(s) == nil {
			return 0, false
		}
		return float64(*get(s)), true
	}}
}

// cpuTime is one of the stats in microseconds, as seconds.
func cpuTime(name, help string, get func(*collector.Stats) *uint64) family {
	f := figure(name, help, true, get)
	usec := f.value
	f.value = func(v *vm) (float64, bool) {
		n, ok := usec(v)
		return n / 1e6, ok
	}
	return f
}

// disk is what a disk takes on the host, also of a stopped VM.
func disk(device string, get func(*collector.Stats) *int64) family {
	return family{name: "banger_vm_disk_allocated_bytes", help: "What the VM's disk takes on the host.", device: device, value: func(v *vm) (float64, bool) {
		if v.stats == nil || get(v.stats) == nil {
			return 0, false
		}
		return float64(*get(v.stats)), true
	}}
}

// inside is one of the guest's own figures, which it may have made up.
func inside(name, help string, get func(*guest.Stats) float64) family {
	return family{name: name, help: help, value: func(v *vm) (float64, bool) {
		g := v.guest()
		if g == nil || math.IsNaN(get(g)) || math.IsInf(get(g), 0) {
			return 0, false
		}
		return get(g), true
	}}
}

func filesystem(name, help string, get func(*guest.Stats) int64) family {
	return family{name: name, help: help, value: func(v *vm) (float64, bool) {
		g := v.guest()
		if g == nil || g.DiskTotal <= 0 {
			return 0, false
		}
		return float64(get(g)), true
	}}
}

// totalName is the family that counts the VMs by their states.
const totalName = "banger_vms"

// familyNames are the names of all families of VMs, sorted.
var familyNames = func() []string {
	names := []string{totalName}
	for i := range families {
		names = append(names, families[i].name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}()

// vmFamilies makes the families of all VMs one after the other.
type vmFamilies struct {
	names  []string // of those to come
	vms    []vm
	labels []*dto.LabelPair // the names of the VMs
	series []series         // of one row of families, reused
	out    dto.MetricFamily // reused
}

// series is one metric of one VM with all that it points to.
type series struct {
	metric  dto.Metric
	gauge   dto.Gauge
	counter dto.Counter
	value   float64
	labels  [2]*dto.LabelPair
}

// vms takes what is known of all VMs in one pass over their snapshots.
func (m *Metrics) vms() *vmFamilies {
	list := m.o.Manager.VMs()
	f := &vmFamilies{names: familyNames, vms: make([]vm, len(list)), labels: make([]*dto.LabelPair, len(list))}
	for i, v := range list {
		f.vms[i].snap = v.Snapshot()
		f.vms[i].stats, f.vms[i].health, _ = m.o.Collector.Known(v)
		f.labels[i] = pair("vm", f.vms[i].snap.Name)
	}
	return f
}

// next gives the family of the next name, without series if nothing is known of any VM. It is valid until the next call.
func (f *vmFamilies) next() *dto.MetricFamily {
	name := f.names[0]
	f.names = f.names[1:]
	f.out.Metric = f.out.Metric[:0]
	if name == totalName {
		return f.total()
	}
	used := 0
	for i := range families {
		if row := &families[i]; row.name == name {
			kind := dto.MetricType_GAUGE
			if row.counter {
				kind = dto.MetricType_COUNTER
			}
			f.out.Name, f.out.Help, f.out.Type = &row.name, &row.help, kind.Enum()
			used = f.add(row, used)
		}
	}
	return &f.out
}

// total counts the VMs by their states, those too in which there is none.
func (f *vmFamilies) total() *dto.MetricFamily {
	counts := map[vmm.State]int{}
	for i := range f.vms {
		counts[f.vms[i].snap.State]++
	}
	f.out.Name, f.out.Help, f.out.Type = proto.String(totalName), proto.String("VMs by their state."), dto.MetricType_GAUGE.Enum()
	for _, s := range []vmm.State{vmm.Failed, vmm.Paused, vmm.Running, vmm.Starting, vmm.Stopped, vmm.Stopping} {
		f.out.Metric = append(f.out.Metric, &dto.Metric{
			Label: []*dto.LabelPair{pair("state", string(s))}, Gauge: &dto.Gauge{Value: proto.Float64(float64(counts[s]))}})
	}
	return &f.out
}

// add adds the series of one row, of which so many were used before, and gives how many are now.
func (f *vmFamilies) add(row *family, used int) int {
	if need := used + len(f.vms); need > len(f.series) {
		// What was added already points into the old ones, which is as good.
		f.series = append(f.series[:used:used], make([]series, len(f.vms))...)
	}
	var device *dto.LabelPair
	if row.device != "" {
		device = pair("device", row.device)
	}
	for i := range f.vms {
		value, ok := row.value(&f.vms[i])
		if !ok {
			continue
		}
		s := &f.series[used]
		used++
		s.value = value
		if s.labels[0] = f.labels[i]; device != nil { // sorted by name
			s.labels = [2]*dto.LabelPair{device, f.labels[i]}
		}
		s.metric.Label = s.labels[:1]
		if device != nil {
			s.metric.Label = s.labels[:]
		}
		s.metric.Gauge, s.metric.Counter = nil, nil
		if row.counter {
			s.counter.Value, s.metric.Counter = &s.value, &s.counter
		} else {
			s.gauge.Value, s.metric.Gauge = &s.value, &s.gauge
		}
		f.out.Metric = append(f.out.Metric, &s.metric)
	}
	return used
}

func pair(name, value string) *dto.LabelPair {
	return &dto.LabelPair{Name: proto.String(name), Value: proto.String(value)}
}
