package fs

import (
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"syscall"

	"banger/internal/host"
	"banger/internal/printable"
	"banger/vmm"
)

// maxLogs bounds the logs and consoles that one user has open. Each needs a descriptor of the
// daemon.
const maxLogs = 1024

// logOpen returns the open function of a file in the VM's directory on the host.
func logOpen(name string) func(*openRequest) (handle, error) {
	return func(r *openRequest) (handle, error) {
		s, uid := r.server, uint64(r.uid)
		end := func() {}
		if !r.isRoot() {
			if !s.logs.acquire(uid) {
				return nil, fmt.Errorf("uid %d has %d logs and consoles open: close some: %w",
					uid, maxLogs, syscall.EDQUOT)
			}
			end = func() { s.logs.release(uid) }
		}
		t, err := host.OpenTail(filepath.Join(r.snap().Dir, name))
		if err != nil {
			end()
			return nil, err
		}
		file := plainID(r.node)
		t.SetBase(s.growing.hold(file, &shared{base: t.Base()}).base)
		// A VMM under its guest's control logs anything. A console is the guest's
		// own.
		return &tail{Tail: t, masked: name == vmm.LogFile, end: func() {
			s.growing.release(file)
			end()
		}}, nil
	}
}

func logAttr(name string) func(*request, *attributes) {
	return func(r *request, a *attributes) {
		base := int64(-1)
		if s := r.server.growing.get(plainID(r.node)); s != nil {
			base = s.base
		}
		size, changed := host.TailSize(filepath.Join(r.snap().Dir, name), base)
		a.size = size
		if !changed.IsZero() {
			a.changed = changed
		}
	}
}

// tail is an open file of the host that grows.
type tail struct {
	*host.Tail
	masked bool // hides control characters
	end    func()

	mu    sync.Mutex // guards Tail and place
	place place
}

func (t *tail) read(_ *call, p []byte, off int64) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pos, err := t.place.find(off, t.Kept)
	if err != nil {
		return nil, err
	}
	n, err := t.ReadAt(p, pos)
	if err == io.EOF {
		err = nil
	}
	t.place.next = off + int64(n)
	if t.masked {
		printable.Mask(p[:n])
	}
	return p[:n], err
}

func (t *tail) close() {
	t.Tail.Close()
	t.end()
}
