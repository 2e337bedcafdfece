package fs

import (
	"context"
	"sync"
	"time"
)

// FUSE does not report inotify's watchers. But a watch holds the file's inode, and the kernel
// reports when it forgets an inode. Without a watch it keeps the inode only for a cached name. So
// the daemon invalidates that name: if the kernel does not forget the inode then, somebody watches
// it.

// followAfter is how long a file must be known or open to count as followed. Most readers let go
// sooner.
const followAfter = 500 * time.Millisecond

// poller polls the health of followed VMs; a *collector.Collector. Its methods do not block.
type poller interface {
	Watch(serial uint64)
	Unwatch(serial uint64)
}

// followers finds the files with the flag followsHealth that are open or watched.
type followers struct {
	poller     poller // immutable, as is invalidate
	invalidate func(parent uint64, name string)
	wake       chan struct{}

	mu    sync.Mutex // guards files; held over calls of poller, so that they arrive in order
	files map[uint64]*followed
}

// followed is one such file while the kernel knows it.
type followed struct {
	opens       int
	since       time.Time // of the last look-up, open, close or invalidation
	invalidated bool      // its name, since the last look-up
	polled      bool
}

func newFollowers(p poller, invalidate func(uint64, string)) *followers {
	return &followers{
		poller: p, invalidate: invalidate, wake: make(chan struct{}, 1),
		files: make(map[uint64]*followed),
	}
}

// named notes a look-up that was answered with the node.
func (t *followers) named(node uint64) {
	t.change(node, true, func(f *followed) { f.invalidated = false })
}

func (t *followers) opened(node uint64) {
	t.change(node, true, func(f *followed) { f.opens++ })
}

// closed notes the end of an open. The kernel does not wait for a RELEASE, which may follow the
// FORGET: then there is nothing to note.
func (t *followers) closed(node uint64) {
	t.change(node, false, func(f *followed) { f.opens = max(0, f.opens-1) })
}

// change changes the entry of a node. Without create, it ignores a node that has none.
func (t *followers) change(node uint64, create bool, change func(*followed)) {
	t.mu.Lock()
	f := t.files[node]
	if f == nil {
		if !create {
			t.mu.Unlock()
			return
		}
		f = new(followed)
		t.files[node] = f
	}
	change(f)
	f.since = time.Now()
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// forget notes that the kernel has forgotten the node.
func (t *followers) forget(node uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[node]
	delete(t.files, node)
	if f != nil && f.polled {
		serial, _, _ := splitID(node)
		t.poller.Unwatch(serial)
	}
}

// run finds followers until ctx ends. It sleeps while nothing changes.
func (t *followers) run(ctx context.Context) {
	for {
		select {
		case <-t.wake:
		case <-ctx.Done():
			return
		}
		for t.step(time.Now()) {
			select {
			case <-time.After(followAfter):
			case <-ctx.Done():
				return
			}
		}
	}
}

// step takes one step with each file, and reports whether another is needed.
func (t *followers) step(now time.Time) (more bool) {
	var names []uint64
	t.mu.Lock()
	for node, f := range t.files {
		settled := f.polled && (f.invalidated || f.opens > 0)
		more = more || !settled
		switch {
		case settled || now.Sub(f.since) < followAfter:
		case f.opens == 0 && !f.invalidated:
			f.invalidated, f.since = true, now
			names = append(names, node)
		case !f.polled:
			f.polled = true
			serial, _, _ := splitID(node)
			t.poller.Watch(serial)
		}
	}
	t.mu.Unlock()
	for _, node := range names {
		serial, row, _ := splitID(node)
		parent := uint64(rootID)
		if row.parent != rows[0] {
			parent = nodeID(serial, row.parent.number, 0)
		}
		t.invalidate(parent, row.name) // fails if the name is gone already
	}
	return more
}
