package collector

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
)

// BenchmarkWarm is what the poller does for one VM whose stats are read: a collection with figures of a real process and a guest that answers at once.
func BenchmarkWarm(b *testing.B) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		b.Fatal(err)
	}
	self, err := parseProcStat(stat)
	if err != nil {
		b.Fatal(err)
	}
	c := newCollector(Options{})
	defer c.Close()
	g := &testGuest{stats: func(context.Context) (guest.Stats, error) { return guest.Stats{Procs: 5}, nil }}
	v := &testVM{changed: make(chan struct{}), snap: &vmm.Snapshot{
		Record:     vmm.Record{Serial: 7, Name: "web", State: vmm.Running, Run: 1, Process: vmm.Process{PID: os.Getpid(), StartTime: self.startTime}},
		CurrentRun: vmm.CurrentRun{Machine: guestMachine{guest: g}, Ready: true, Since: time.Now()},
		Dir:        b.TempDir(),
	}}
	e, err := c.entry(v)
	if err != nil {
		b.Fatal(err)
	}
	s := v.Snapshot()
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		c.answers(e).stats.mu.Lock()
		c.answers(e).stats.read, c.answers(e).stats.tried, c.answers(e).stats.value = c.now(), time.Time{}, nil
		c.answers(e).stats.mu.Unlock()
		c.answers(e).stats.warm(c, epochOf(s), c.now(), c.statsMaxAge, lane{slots: c.warming}, c.statsOf(e, s, true))
		for done := false; !done; {
			c.answers(e).stats.mu.Lock()
			f := c.answers(e).stats.flight
			c.answers(e).stats.mu.Unlock()
			if done = f == nil; !done {
				<-f.done
			}
		}
	}
	if st, _, _ := c.known(v); st == nil || st.CPUUsec == nil || st.Guest == nil {
		b.Fatal(fmt.Sprint(st))
	}
}
