package fs

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// counter counts who is watched, by serial.
type counter map[uint64]int

func (c counter) Watch(serial uint64)   { c[serial]++ }
func (c counter) Unwatch(serial uint64) { c[serial]-- }

// rowOf returns the row of a path of the table.
func rowOf(t *testing.T, path string) *file {
	t.Helper()
	for _, f := range rows {
		if f.docPath() == path {
			return f
		}
	}
	t.Fatalf("the table has no %s", path)
	return nil
}

func TestFollowers(t *testing.T) {
	watched := counter{}
	var dropped []string
	h := newFollowers(watched, func(parent uint64, name string) {
		dropped = append(dropped, fmt.Sprintf("%s in its VM: %v", name, parent == nodeID(7, rowOf(t, "vms/NAME").number, 0)))
	})
	node := nodeID(7, rowOf(t, "vms/NAME/health").number, 0)
	start := time.Now().Add(time.Second) // later than all that is noted in this test
	step := 0
	look := func(more bool, drops, watches int) {
		t.Helper()
		step++
		if got := h.step(start.Add(time.Duration(step) * followAfter)); got != more || len(dropped) != drops || watched[7] != watches {
			t.Errorf("step %d: more %v, dropped %v, watched %d times", step, got, dropped, watched[7])
		}
	}
	// Somebody lists the directory: the kernel gets the name, is told to drop it, and forgets the
	// file.
	h.named(node)
	look(true, 1, 0)
	if dropped[0] != "health in its VM: true" {
		t.Error(dropped[0])
	}
	h.forget(node)
	look(false, 1, 0)
	// Somebody watches it: the kernel does not forget.
	h.named(node)
	look(true, 2, 0)
	look(true, 2, 1)
	look(false, 2, 1)
	// A name that the kernel gets again must go, or the watch's end would not be seen.
	h.named(node)
	look(true, 3, 1)
	look(false, 3, 1)
	h.forget(node)
	if look(false, 3, 0); len(h.files) != 0 {
		t.Error("what the kernel forgot is kept")
	}
	// Somebody has it open: the name is not touched until it is closed.
	h.named(node)
	h.opened(node)
	look(true, 3, 1)
	look(false, 3, 1)
	h.closed(node)
	look(true, 4, 1)
	h.forget(node)
	look(false, 4, 0)
}

// A RELEASE may be handled after the FORGET, or after the next LOOKUP: nothing is held by that.
func TestFollowersReleasedLate(t *testing.T) {
	watched := counter{}
	h := newFollowers(watched, func(uint64, string) {})
	node := nodeID(7, rowOf(t, "vms/NAME/health").number, 0)
	h.named(node)
	h.opened(node)
	h.forget(node)
	h.closed(node)
	if h.step(time.Now().Add(time.Hour)) || len(h.files) != 0 {
		t.Error("a file is known because it was closed")
	}
	h.named(node)
	h.closed(node)
	h.step(time.Now().Add(time.Hour))
	h.forget(node)
	if h.step(time.Now().Add(2*time.Hour)) || watched[7] != 0 {
		t.Errorf("watched %d times by nobody", watched[7])
	}
}

// What is looked up and let go of at once is not held, however much there is of it.
func TestFollowersNone(t *testing.T) {
	var dropped atomic.Int32
	h := newFollowers(counter{}, func(uint64, string) { dropped.Add(1) })
	row := rowOf(t, "vms/NAME/events").number
	for serial := range uint64(1000) {
		h.named(nodeID(serial, row, 0))
		h.forget(nodeID(serial, row, 0))
	}
	if h.step(time.Now().Add(time.Hour)) || dropped.Load() != 0 {
		t.Errorf("%d names were dropped", dropped.Load())
	}
}
