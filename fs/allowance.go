package fs

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
)

// Bounds of what users other than root have open: one of them, and all together. A user below the
// bound of bytes may open one more file of any length.
const (
	maxFiles, maxAllFiles = 1 << 14, 1 << 16
	maxBytes, maxAllBytes = 64 << 20, 512 << 20
)

// allowances counts the open files of users. Its entries stay: a host has a bounded number of uids.
type allowances struct {
	all allowance
	of  sync.Map // *allowance by uid
}

// allowance counts the open files of one uid, or of all.
type allowance struct {
	uid          uint32
	files, bytes atomic.Int64
}

// share is the part of its user's allowance that one open file uses. Root's files use none.
type share struct {
	user, all *allowance // nil for root
	bytes     atomic.Int64
}

// rootShare counts nothing.
var rootShare = new(share)

// newShare counts one more open file of a user until its Release. EDQUOT beyond the bounds.
func (s *Server) newShare(uid uint32) (*share, error) {
	if s.isRoot(uid) {
		return rootShare, nil
	}
	known, ok := s.allowances.of.Load(uid)
	if !ok {
		known, _ = s.allowances.of.LoadOrStore(uid, &allowance{uid: uid})
	}
	h := &share{user: known.(*allowance), all: &s.allowances.all}
	files, all := h.user.files.Add(1), h.all.files.Add(1)
	if files <= maxFiles && all <= maxAllFiles {
		return h, nil
	}
	h.Release()
	if files <= maxFiles {
		return nil, fmt.Errorf("all users together have %d files open: %w", all-1, syscall.EDQUOT)
	}
	return nil, fmt.Errorf("uid %d has %d files open: close some: %w",
		uid, maxFiles, syscall.EDQUOT)
}

// Hold counts the bytes that the file needs from now on in place of those before. EDQUOT if its
// user was at the bound already; fewer bytes are never refused.
func (h *share) Hold(bytes int64) error {
	if h.user == nil {
		return nil
	}
	n := bytes - h.bytes.Swap(bytes)
	user, all := h.user.bytes.Add(n)-n, h.all.bytes.Add(n)-n
	if n <= 0 || user < maxBytes && all < maxAllBytes {
		return nil
	}
	h.user.bytes.Add(-n)
	h.all.bytes.Add(-n)
	h.bytes.Store(bytes - n)
	if user < maxBytes {
		return fmt.Errorf("all users together have files of %d bytes open: %w", all, syscall.EDQUOT)
	}
	return fmt.Errorf("uid %d has files of %d bytes open: close some: %w",
		h.user.uid, user, syscall.EDQUOT)
}

// Release returns the whole share. It does nothing on nil.
func (h *share) Release() {
	if h == nil || h.user == nil {
		return
	}
	_ = h.Hold(0)
	h.user.files.Add(-1)
	h.all.files.Add(-1)
}

// slots bounds how many of a kind are in use at once, by key.
type slots struct {
	most int // immutable

	mu   sync.Mutex // guards used
	used map[uint64]int
}

func newSlots(most int) slots { return slots{most: most, used: make(map[uint64]int)} }

// acquire reports whether a slot was free. The caller releases it.
func (s *slots) acquire(key uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[key] >= s.most {
		return false
	}
	s.used[key]++
	return true
}

func (s *slots) release(key uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[key]--; s.used[key] == 0 {
		delete(s.used, key)
	}
}
