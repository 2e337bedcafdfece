package cgroup

import (
	"math"
	"strconv"
	"time"

	"banger/vmm"
)

// knob is how one limit is set: in files of version 2 and of version 1, and by properties of a unit
// of systemd (systemd.resource-control(5)).
type knob struct {
	feature    vmm.Feature
	same       func(a, b *vmm.Limits) bool
	unified    func(*vmm.Limits) []setting
	legacy     func(*vmm.Limits) []setting
	properties func(*vmm.Limits) []property
}

// setting is a file of a group and its content.
type setting struct{ file, text string }

// property is a property of a unit.
type property struct {
	name  string
	value uint64
}

// usualShares is version 1's weight of a group that has the weight 100 in version 2.
const usualShares = 1024

var knobs = []knob{
	{
		feature: vmm.FeatureCPUMax,
		same:    func(a, b *vmm.Limits) bool { return a.CPUMax == b.CPUMax },
		unified: func(l *vmm.Limits) []setting { return []setting{{"cpu.max", l.CPUMax.String()}} },
		legacy: func(l *vmm.Limits) []setting {
			quota := "-1"
			if l.CPUMax.Quota != 0 {
				quota = strconv.FormatInt(l.CPUMax.Quota.Microseconds(), 10)
			}
			period := strconv.FormatInt(l.CPUMax.Each().Microseconds(), 10)
			// Without a quota every period is accepted.
			return []setting{{"cpu.cfs_quota_us", "-1"}, {"cpu.cfs_period_us", period},
				{"cpu.cfs_quota_us", quota}}
		},
		properties: func(l *vmm.Limits) []property {
			perSecond := uint64(math.MaxUint64)
			if l.CPUMax.Quota != 0 {
				share := l.CPUMax.Quota.Seconds() / l.CPUMax.Each().Seconds()
				perSecond = uint64(math.Round(share * float64(time.Second/time.Microsecond)))
			}
			return []property{{"CPUQuotaPerSecUSec", perSecond},
				{"CPUQuotaPeriodUSec", uint64(l.CPUMax.Each().Microseconds())}}
		},
	},
	{
		feature: vmm.FeatureCPUWeight,
		same:    func(a, b *vmm.Limits) bool { return a.CPUWeight == b.CPUWeight },
		unified: func(l *vmm.Limits) []setting {
			return []setting{{"cpu.weight", strconv.Itoa(l.CPUWeight.Value())}}
		},
		legacy: func(l *vmm.Limits) []setting {
			shares := max(2, l.CPUWeight.Value()*usualShares/100)
			return []setting{{"cpu.shares", strconv.Itoa(shares)}}
		},
		properties: func(l *vmm.Limits) []property {
			return []property{{"CPUWeight", uint64(l.CPUWeight.Value())}}
		},
	},
	{
		feature: vmm.FeatureMemoryMax,
		same:    func(a, b *vmm.Limits) bool { return a.MemoryMax == b.MemoryMax },
		unified: func(l *vmm.Limits) []setting {
			return []setting{{"memory.max", orMax(l.MemoryMax, "max")}}
		},
		legacy: func(l *vmm.Limits) []setting {
			return []setting{{"memory.limit_in_bytes", orMax(l.MemoryMax, "-1")}}
		},
		properties: func(l *vmm.Limits) []property {
			return []property{{"MemoryMax", orInfinity(l.MemoryMax)}}
		},
	},
	{
		feature: vmm.FeaturePIDsMax,
		same:    func(a, b *vmm.Limits) bool { return a.PIDsMax == b.PIDsMax },
		unified: func(l *vmm.Limits) []setting {
			return []setting{{"pids.max", orMax(l.PIDsMax, "max")}}
		},
		legacy: func(l *vmm.Limits) []setting {
			return []setting{{"pids.max", orMax(l.PIDsMax, "max")}}
		},
		properties: func(l *vmm.Limits) []property {
			return []property{{"TasksMax", orInfinity(l.PIDsMax)}}
		},
	},
}

func orMax(n int64, none string) string {
	if n == 0 {
		return none
	}
	return strconv.FormatInt(n, 10)
}

func orInfinity(n int64) uint64 {
	if n == 0 {
		return math.MaxUint64
	}
	return uint64(n)
}

// changes returns the knobs of the limits that differ.
func changes(old, l *vmm.Limits) []*knob {
	var all []*knob
	for i := range knobs {
		if !knobs[i].same(old, l) {
			all = append(all, &knobs[i])
		}
	}
	return all
}
