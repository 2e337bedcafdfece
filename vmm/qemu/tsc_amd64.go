package qemu

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// rdtsc reads the time stamp counter.
func rdtsc() uint64

// measureTSC returns the frequency in kHz, measured for 50 ms; 0 if that fails.
func measureTSC() uint64 {
	tsc0, ns0, ok0 := tscNow()
	time.Sleep(50 * time.Millisecond)
	tsc1, ns1, ok1 := tscNow()
	if !ok0 || !ok1 || ns1 <= ns0 || tsc1 <= tsc0 {
		return 0
	}
	return (tsc1 - tsc0) * 1_000_000 / uint64(ns1-ns0)
}

// tscNow reads counter and clock together. It returns the closest of 32 pairs, so that a preemption
// in between does no harm.
func tscNow() (tsc uint64, ns int64, ok bool) {
	best := uint64(math.MaxUint64)
	for range 32 {
		before := rdtsc()
		var ts unix.Timespec
		if unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts) != nil {
			return 0, 0, false
		}
		if gap := rdtsc() - before; gap < best {
			best, tsc, ns = gap, before+gap/2, ts.Nano()
		}
	}
	return tsc, ns, true
}
