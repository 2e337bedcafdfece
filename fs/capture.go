package fs

import (
	"sync"
	"time"
)

// handle is what one open reads from.
type handle interface {
	// read returns at most len(p) bytes from off, none at the end. The result may be in p. read may
	// block until the call's context ends.
	read(c *call, p []byte, off int64) ([]byte, error)
	close()
}

// capture is the whole text of a file at one moment.
type capture []byte

// part returns at most n bytes from off, none at the end.
func (c capture) part(n int, off int64) []byte {
	if off >= int64(len(c)) {
		return nil
	}
	return c[off:min(int64(len(c)), off+int64(n))]
}

// generated is an open generated file. Its reads return the capture of its open. A read from the
// beginning again, as by a monitor that keeps the descriptor, makes a new capture, as cgroup's
// files.
type generated struct {
	mu      sync.Mutex // guards what follows
	capture capture
	at      time.Time // of the open; zero if it has no capture
	begun   bool      // it was read from its beginning
}

// lateRead is how long after the open a first read counts as one of a kept descriptor.
const lateRead = 200 * time.Millisecond

func (g *generated) part(n int, off int64) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.capture.part(n, off)
}

func (g *generated) read(_ *call, p []byte, off int64) ([]byte, error) {
	return g.part(len(p), off), nil
}

// again reports whether a read from the beginning is late, or not the first.
func (g *generated) again() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.begun
	g.begun = true
	return was || time.Since(g.at) > lateRead
}

func (g *generated) renew(s *share, c capture) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := s.Hold(int64(cap(c))); err != nil {
		return err
	}
	g.capture = c
	return nil
}

func (g *generated) close() {}
