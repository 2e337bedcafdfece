package collector

import (
	"context"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/vmm"
	"banger/vmm/guest"
)

// numberedVM is one of many.
type numberedVM struct {
	testVM
	serial uint64
}

func (v *numberedVM) Serial() uint64 { return v.serial }

// BenchmarkWatched is a second of a daemon whose monitor reads the stats of all VMs every eight
// seconds. Its clock is the test's own; the metric is CPU time, which other load changes little.
func BenchmarkWatched(b *testing.B) {
	for _, count := range []int{1000, 10000} {
		b.Run(strconv.Itoa(count), func(b *testing.B) { watch(b, count) })
	}
}

func watch(b *testing.B, count int) {
	self := statOf(b, os.Getpid())
	clock := &testClock{t: time.Unix(1790000000, 0)}
	c := newCollector(Options{})
	defer c.Close()
	c.now, c.began = clock.now, clock.now()
	g := &testGuest{stats: func(context.Context) (guest.Stats, error) {
		return guest.Stats{Procs: 5}, nil
	}}
	vms := make([]*numberedVM, count)
	dir := b.TempDir()
	for i := range vms {
		serial := uint64(i + 1)
		vms[i] = &numberedVM{serial: serial}
		vms[i].changed = make(chan struct{})
		vms[i].snap = &vmm.Snapshot{
			Record: vmm.Record{Serial: serial, Name: "web", State: vmm.Running, Run: 1,
				Process: vmm.Process{PID: os.Getpid(), StartTime: self.startTime}},
			CurrentRun: vmm.CurrentRun{Machine: guestMachine{guest: g}, Ready: true,
				Since: clock.now()},
			Dir: dir,
		}
	}
	var before unix.Rusage
	ticks := 0
	tick := func() {
		if ticks%(8*ticksPerAge) == 0 {
			for _, v := range vms {
				if _, err := c.Stats(context.Background(), v); err != nil {
					b.Fatal(err)
				}
			}
		}
		ticks++
		clock.advance(c.pace())
		c.keepWarm()
		for len(c.warming) > 0 {
			runtime.Gosched()
		}
	}
	for range 16 * ticksPerAge {
		tick()
	}
	if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
		b.Fatal(err)
	}
	begun := c.Totals()
	b.ResetTimer()
	for range b.N * ticksPerAge {
		tick()
	}
	var after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		b.Fatal(err)
	}
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/1e6/float64(b.N), "cpu-ms/s")
	b.ReportMetric(float64(c.Totals().Collections-begun.Collections)/float64(b.N), "collections/s")
}
