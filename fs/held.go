package fs

import (
	"context"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// FUSE does not tell who watches a file with inotify(7). But a watch holds the file's inode, and the kernel tells when it forgets one. Without
// a watch it keeps the inode only for the name that somebody looked up; told to drop that name it forgets the inode, and if it does not,
// somebody holds it.

// heldAfter is how long a file may be known, or open, before that counts: whoever just looks lets go of it.
const heldAfter = 500 * time.Millisecond

// watchers is who asks for the health that is watched; a *collector.Collector. Neither blocks.
type watchers interface {
	Watch(serial uint64)
	Unwatch(serial uint64)
}

// held are the files whose holders are told of changes of health, as far as the kernel knows them.
type held struct {
	watchers watchers // immutable, as is drop
	drop     func(parent uint64, name string) fuse.Status
	wake     chan struct{}

	mu    sync.Mutex // guards what follows; held over calls of watchers, so that they come in order
	files map[uint64]*heldFile
}

// heldFile is one of them.
type heldFile struct {
	opens   int
	since   time.Time // the kernel got its name, the last open was closed, or the name was dropped
	dropped bool      // its name, since the kernel got it
	watched bool      // the watchers were told
}

func newHeld(w watchers, drop func(uint64, string) fuse.Status) *held {
	return &held{watchers: w, drop: drop, wake: make(chan struct{}, 1), files: make(map[uint64]*heldFile)}
}

// named notes that the kernel got the name of a node.
func (h *held) named(node uint64) {
	h.change(node, true, func(f *heldFile) { f.dropped = false })
}

func (h *held) opened(node uint64) {
	h.change(node, true, func(f *heldFile) { f.opens++ })
}

// closed notes the end of an open. RELEASE is not waited for and may be handled after the FORGET: then there is nothing to note.
func (h *held) closed(node uint64) {
	h.change(node, false, func(f *heldFile) { f.opens = max(0, f.opens-1) })
}

// change notes something of a node; of one that is not known only if it makes it known.
func (h *held) change(node uint64, makes bool, change func(*heldFile)) {
	h.mu.Lock()
	f := h.files[node]
	if f == nil {
		if !makes {
			h.mu.Unlock()
			return
		}
		f = new(heldFile)
		h.files[node] = f
	}
	change(f)
	f.since = time.Now()
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// forget notes that the kernel does not know the node any more.
func (h *held) forget(node uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.files[node]
	delete(h.files, node)
	if f != nil && f.watched {
		serial, _, _ := splitID(node)
		h.watchers.Unwatch(serial)
	}
}

// run finds out what is held until ctx ends. While nothing changes it sleeps.
func (h *held) run(ctx context.Context) {
	for {
		select {
		case <-h.wake:
		case <-ctx.Done():
			return
		}
		for h.look(time.Now()) {
			select {
			case <-time.After(heldAfter):
			case <-ctx.Done():
				return
			}
		}
	}
}

// look takes one step with each file, and reports whether there is more to find out.
func (h *held) look(now time.Time) (more bool) {
	var drop []uint64
	h.mu.Lock()
	for node, f := range h.files {
		settled := f.watched && (f.dropped || f.opens > 0)
		more = more || !settled
		switch {
		case settled || now.Sub(f.since) < heldAfter:
		case f.opens == 0 && !f.dropped:
			f.dropped, f.since = true, now
			drop = append(drop, node)
		case !f.watched:
			f.watched = true
			serial, _, _ := splitID(node)
			h.watchers.Watch(serial)
		}
	}
	h.mu.Unlock()
	for _, node := range drop {
		serial, row, _ := splitID(node)
		parent := uint64(rootID)
		if rows[row].parent != 0 {
			parent = nodeID(serial, rows[row].parent, 0)
		}
		h.drop(parent, rows[row].name) // fails where the name is gone already
	}
	return more
}
