package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	memoryPace  = 10 * time.Second
	quietAllocs = 32 << 20 // bytes that a quiet daemon allocates within memoryPace at most
	worthFree   = 8 << 20  // free bytes that are worth a garbage collection
)

// Samples of the heap, by index.
const (
	heapAllocs = iota
	heapFree
	heapUnused
	heapObjects
	heapLive
)

// giveMemoryBack returns free memory to the host once the daemon is quiet. The runtime alone keeps
// as much again as is in use. It ends with ctx.
func giveMemoryBack(ctx context.Context) {
	samples := []metrics.Sample{
		heapAllocs:  {Name: "/gc/heap/allocs:bytes"},
		heapFree:    {Name: "/memory/classes/heap/free:bytes"},
		heapUnused:  {Name: "/memory/classes/heap/unused:bytes"},
		heapObjects: {Name: "/memory/classes/heap/objects:bytes"},
		heapLive:    {Name: "/gc/heap/live:bytes"},
	}
	read := func(i int) int64 { return int64(samples[i].Value.Uint64()) }
	tick := time.NewTicker(memoryPace)
	defer tick.Stop()
	metrics.Read(samples)
	last, returned := read(heapAllocs), int64(0)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		metrics.Read(samples)
		allocs := read(heapAllocs)
		quiet := allocs-last < quietAllocs
		last = allocs
		garbage := max(0, read(heapObjects)-read(heapLive))
		free := read(heapFree) + read(heapUnused) + garbage
		if quiet && free > worthFree && allocs-returned > quietAllocs {
			debug.FreeOSMemory()
			returned = allocs
		}
	}
}
