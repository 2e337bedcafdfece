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
	self := statOf(b, os.Getpid())
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
		k := e.cached(statsKind)
		k.mu.Lock()
		k.read, k.tried, k.value = c.now(), time.Time{}, nil
		k.mu.Unlock()
		k.warm(&task{kind: statsKind, c: c, e: e, s: s}, c.now(), lane{slots: c.warming})
		for done := false; !done; {
			k.mu.Lock()
			f := k.flight
			k.mu.Unlock()
			if done = f == nil; !done {
				<-f.done
			}
		}
	}
	if st, _, _ := c.Known(v); st == nil || st.CPUUsec == nil || st.Guest == nil {
		b.Fatal(fmt.Sprint(st))
	}
}
