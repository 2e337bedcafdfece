package fs

import "sync"

// `log`, `console`, `events` and `audit` grow at their end and are cut at their head. stat(2) shows one size
// to all readers (GETATTR names no open file), and tail -f goes by it. So their offsets count from
// one base while the file is open, and from another when it is opened again.

// growing holds what is shared by the openers of each file, by plain number.
type growing struct {
	mu   sync.Mutex // guards open and its values
	open map[uint64]*shared
}

// shared is what all openers of a growing file share.
type shared struct {
	users int
	base  int64       // of a file of the host
	text  growingText // of events and audit
}

// growingText is text that grows.
type growingText interface {
	// now returns the text so far, and how many bytes were dropped before it. The returned text
	// does not change later.
	now() (text []byte, dropped int64)
}

// hold counts an opener and returns what the file's openers share: s for the first one. It returns
// nil if both are nil. The caller releases any other result.
func (g *growing) hold(file uint64, s *shared) *shared {
	g.mu.Lock()
	defer g.mu.Unlock()
	if known := g.open[file]; known != nil {
		s = known
	}
	if s != nil {
		g.open[file] = s
		s.users++
	}
	return s
}

// release counts an opener less, and reports whether it was the last.
func (g *growing) release(file uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.open[file]
	if s.users--; s.users > 0 {
		return false
	}
	delete(g.open, file)
	return true
}

// get returns what the file's openers share, nil if there are none.
func (g *growing) get(file uint64) *shared {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open[file]
}

// place follows one reader through a file that is cut at its head.
type place struct {
	next    int64 // end of the last read
	skipped int64 // bytes that were cut ahead of a reader that continues
}

// find returns the position in the file for a read at off. kept returns an offset, or the first one
// that is left where the offset was cut. A seek leads to the bytes that stat(2) promises there. A
// read that begins or continues never meets a hole.
func (p *place) find(off int64, kept func(int64) (int64, error)) (int64, error) {
	if off != p.next {
		p.skipped = 0
	}
	if off == p.next || off == 0 {
		pos, err := kept(off + p.skipped)
		if err != nil {
			return 0, err
		}
		p.skipped = pos - off
	}
	return off + p.skipped, nil
}

// growingFile is an open file of text that grows.
type growingFile struct {
	text growingText
	end  func()

	mu    sync.Mutex // guards place
	place place
}

func (h *growingFile) read(_ *call, p []byte, off int64) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	text, dropped := h.text.now()
	pos, _ := h.place.find(off, func(off int64) (int64, error) { return max(off, dropped), nil })
	if pos < dropped {
		p = p[:min(int64(len(p)), dropped-pos)] // NUL bytes, as in the hole of a trimmed log
		clear(p)
	} else {
		p = capture(text).part(len(p), pos-dropped)
	}
	h.place.next = off + int64(len(p))
	return p, nil
}

func (h *growingFile) close() { h.end() }
