package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	memoryPace  = 10 * time.Second
	quietAllocs = 32 << 20 // bytes that a quiet daemon allocates in that time at most
	worthFree   = 8 << 20  // free bytes that are worth a collection of garbage
)

// giveMemoryBack returns to the host what a burst of work left free, once the daemon has become quiet: the runtime by itself keeps as much
// again as what is used. It ends with ctx.
func giveMemoryBack(ctx context.Context) {
	samples := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(memoryPace)
	defer tick.Stop()
	metrics.Read(samples)
	last, given := samples[0].Value.Uint64(), uint64(0)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		metrics.Read(samples)
		allocs := samples[0].Value.Uint64()
		quiet := allocs-last < quietAllocs
		last = allocs
		garbage := int64(samples[3].Value.Uint64()) - int64(samples[4].Value.Uint64())
		free := int64(samples[1].Value.Uint64()+samples[2].Value.Uint64()) + max(0, garbage)
		if quiet && free > worthFree && allocs-given > quietAllocs {
			debug.FreeOSMemory()
			given = allocs
		}
	}
}
