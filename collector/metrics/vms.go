package metrics

import (
	"slices"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"banger/collector"
	"banger/vmm"
)

// vm is one VM at the moment of a scrape.
type vm struct {
	snap   *vmm.Snapshot
	stats  *collector.Stats // nil if the cache has none
	health string           // its status
}

// family is one metric of every VM. value reports false where it is not known.
type family struct {
	name, help string
	device     string // the label; a second series of the same name is the next row
	counter    bool
	value      func(*vm) (float64, bool)
}

// families are sorted by name in the output; rows of one name follow each other.
var families = append([]family{
	state("banger_vm_running", "1 while the VM's CPUs run.", vmm.Running),
	state("banger_vm_paused", "1 while the VM is paused.", vmm.Paused),
	state("banger_vm_failed", "1 when the VM could not start or its VMM died.", vmm.Failed),
	{name: "banger_vm_healthy", value: healthy,
		help: "1 when the guest's agent answered last time it was asked, 0 when it did not."},
	{name: "banger_vm_cpus", help: "CPUs that the VM is given.",
		value: func(v *vm) (float64, bool) { return float64(v.snap.Config.CPUs), true }},
	{name: "banger_vm_memory_bytes", help: "Memory that the VM is given.",
		value: func(v *vm) (float64, bool) { return float64(v.snap.Config.Memory), true }},
	{name: "banger_vm_start_time_seconds", help: "When the VM was started, in Unix time.",
		value: func(v *vm) (float64, bool) {
			known := v.snap.State.Alive() && !v.snap.Started.IsZero()
			return float64(v.snap.Started.UnixMilli()) / 1000, known
		}},
}, collected()...)

// collected returns a family for each metric of the collector's sources.
func collected() []family {
	var all []family
	for _, m := range collector.Metrics() {
		all = append(all, family{m.Name, m.Help, m.Device, m.Counter, func(v *vm) (float64, bool) {
			if v.stats == nil {
				return 0, false
			}
			return m.Value(v.stats)
		}})
	}
	return all
}

func state(name, help string, want vmm.State) family {
	return family{name: name, help: help,
		value: func(v *vm) (float64, bool) { return one(v.snap.State == want), true }}
}

func healthy(v *vm) (float64, bool) {
	known := v.health == collector.Healthy || v.health == collector.Unhealthy
	return one(v.health == collector.Healthy), known
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
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

// vms collects the VMs in one pass over their snapshots.
func (m *Metrics) vms() *vmFamilies {
	list := m.o.Manager.VMs()
	f := &vmFamilies{names: familyNames, vms: make([]vm, len(list))}
	f.labels = make([]*dto.LabelPair, len(list))
	for i, v := range list {
		f.vms[i].snap = v.Snapshot()
		f.vms[i].stats, f.vms[i].health, _ = m.o.Collector.Known(v)
		f.labels[i] = pair("vm", f.vms[i].snap.Name)
	}
	return f
}

// next returns the family of the next name, without series if no VM has a value. It is valid until
// the next call.
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

// total counts the VMs by their states, with a series also for a state without any.
func (f *vmFamilies) total() *dto.MetricFamily {
	counts := map[vmm.State]int{}
	for i := range f.vms {
		counts[f.vms[i].snap.State]++
	}
	f.out.Name, f.out.Help = proto.String(totalName), proto.String("VMs by their state.")
	f.out.Type = dto.MetricType_GAUGE.Enum()
	for _, s := range slices.Sorted(slices.Values(vmm.States)) {
		f.out.Metric = append(f.out.Metric, &dto.Metric{
			Label: []*dto.LabelPair{pair("state", string(s))},
			Gauge: &dto.Gauge{Value: proto.Float64(float64(counts[s]))}})
	}
	return &f.out
}

// add adds the series of one row after the used ones, and returns the new number of those.
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
