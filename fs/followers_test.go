package fs

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// counter counts the polls of VMs by serial.
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
		inVM := parent == nodeID(7, rowOf(t, "vms/NAME").number, 0)
		dropped = append(dropped, fmt.Sprintf("%s in its VM: %v", name, inVM))
	})
	node := nodeID(7, rowOf(t, "vms/NAME/health").number, 0)
	start := time.Now().Add(time.Second) // later than all changes in this test
	step := 0
	look := func(more bool, drops, watches int) {
		t.Helper()
		step++
		got := h.step(start.Add(time.Duration(step) * followAfter))
		if got != more || len(dropped) != drops || watched[7] != watches {
			t.Errorf("step %d: more %v, dropped %v, polled %d times",
				step, got, dropped, watched[7])
		}
	}
	// A listing makes the kernel know the name. It drops it when asked, and forgets the file.
	h.named(node)
	look(true, 1, 0)
	if dropped[0] != "health in its VM: true" {
		t.Error(dropped[0])
	}
	h.forget(node)
	look(false, 1, 0)
	// With a watcher the kernel does not forget the file.
	h.named(node)
	look(true, 2, 0)
	look(true, 2, 1)
	look(false, 2, 1)
	// A name that was looked up again must be dropped again, or the watch's end would go unnoticed.
	h.named(node)
	look(true, 3, 1)
	look(false, 3, 1)
	h.forget(node)
	if look(false, 3, 0); len(h.files) != 0 {
		t.Error("a forgotten file is kept")
	}
	// The name of an open file is not dropped until the file is closed.
	h.named(node)
	h.opened(node)
	look(true, 3, 1)
	look(false, 3, 1)
	h.closed(node)
	look(true, 4, 1)
	h.forget(node)
	look(false, 4, 0)
}

// A RELEASE may arrive after the FORGET, or after the next LOOKUP. It makes no follower.
func TestFollowersReleasedLate(t *testing.T) {
	watched := counter{}
	h := newFollowers(watched, func(uint64, string) {})
	node := nodeID(7, rowOf(t, "vms/NAME/health").number, 0)
	h.named(node)
	h.opened(node)
	h.forget(node)
	h.closed(node)
	if h.step(time.Now().Add(time.Hour)) || len(h.files) != 0 {
		t.Error("a late close made a file known")
	}
	h.named(node)
	h.closed(node)
	h.step(time.Now().Add(time.Hour))
	h.forget(node)
	if h.step(time.Now().Add(2*time.Hour)) || watched[7] != 0 {
		t.Errorf("polled %d times without a watcher", watched[7])
	}
}

// Files that are looked up and forgotten at once have no followers.
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
