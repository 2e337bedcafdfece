package vmm

import (
	"sync/atomic"
	"time"
)

// RemoveAll is the function that deletes the directories of removed VMs.
var RemoveAll = &removeAll

// HolderWait is the time in which a holder may return after Open.
var HolderWait = &holderWait

// ClockEvery is the time between two corrections of a guest's drift.
var ClockEvery = &clockEvery

// MoveHostClock lets a test add to the host's sleep and to the steps of its wall clock, in
// nanoseconds, until restore is called. No Manager may be open at either time.
func MoveHostClock() (slept, wall *atomic.Int64, restore func()) {
	was := readHostClock
	slept, wall = new(atomic.Int64), new(atomic.Int64)
	readHostClock = func() hostClock {
		h := was()
		h.slept += time.Duration(slept.Load())
		h.wall += time.Duration(wall.Load())
		return h
	}
	return slept, wall, func() { readHostClock = was }
}
