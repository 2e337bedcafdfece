package fs

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// What the users who are not root may have open at once, one of them and all together. One more
// file, of whatever length, is opened while a user has less than the bytes.
const (
	maxFiles, maxAllFiles = 1 << 14, 1 << 16
	maxBytes, maxAllBytes = 64 << 20, 512 << 20
)

// allowances counts what users have open. An entry stays: there are no more than the host has uids.
type allowances struct {
	all allowance
	of  sync.Map // *allowance by uid
}

// allowance counts what one uid has open; nil stands for root's, which has no bounds.
type allowance struct {
	uid          uint32
	all          *allowance // of all users; nil in that itself
	files, bytes atomic.Int64
}

// file counts one more open file of the request's uid. EDQUOT if that has too many. The caller ends
// it.
func (t *allowances) file(r *request) (*allowance, error) {
	if r.isRoot() {
		return nil, nil
	}
	known, ok := t.of.Load(r.uid)
	if !ok {
		known, _ = t.of.LoadOrStore(r.uid, &allowance{uid: r.uid, all: &t.all})
	}
	a := known.(*allowance)
	files, all := a.files.Add(1), t.all.files.Add(1)
	if files <= maxFiles && all <= maxAllFiles {
		return a, nil
	}
	a.end()
	if files <= maxFiles {
		return nil, fmt.Errorf("all users together have %d files open: %w", all-1, syscall.EDQUOT)
	}
	return nil, fmt.Errorf("uid %d has %d files open: close some: %w", a.uid, maxFiles, syscall.EDQUOT)
}

// end takes back one file.
func (a *allowance) end() {
	if a != nil {
		a.files.Add(-1)
		a.all.files.Add(-1)
	}
}

// add counts so many bytes more, or less. EDQUOT if there are too many already.
func (a *allowance) add(n int64) error {
	if a == nil || n == 0 {
		return nil
	}
	before, allBefore := a.bytes.Add(n)-n, a.all.bytes.Add(n)-n
	if n < 0 || before < maxBytes && allBefore < maxAllBytes {
		return nil
	}
	a.bytes.Add(-n)
	a.all.bytes.Add(-n)
	if before < maxBytes {
		return fmt.Errorf("all users together have files of %d bytes open: %w", allBefore, syscall.EDQUOT)
	}
	return fmt.Errorf("uid %d has files of %d bytes open: close some: %w", a.uid, before, syscall.EDQUOT)
}

// holds counts the bytes that the open file has from now on in the place of those that it had.
func (h *opened) holds(bytes int64) error {
	if h.allowance == nil {
		return nil
	}
	was := h.held.Swap(bytes)
	err := h.allowance.add(bytes - was)
	if err != nil {
		h.held.Store(was)
	}
	return err
}

// letAllowance gives back all that the open file was counted with.
func (h *opened) letAllowance() {
	if h.allowance != nil {
		_ = h.holds(0) // less is never refused
		h.allowance.end()
	}
}

// entriesBytes is what a directory's names take, which themselves are the VMs'.
func entriesBytes(entries []entry) int64 {
	return int64(cap(entries)) * int64(unsafe.Sizeof(entry{}))
}

// slots bounds how many of a kind are open at once, by what they belong to.
type slots struct {
	most int // immutable

	mu   sync.Mutex // guards used
	used map[uint64]int
}

func newSlots(most int) slots { return slots{most: most, used: make(map[uint64]int)} }

// take reports whether there was one; the caller gives it back.
func (s *slots) take(of uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[of] >= s.most {
		return false
	}
	s.used[of]++
	return true
}

func (s *slots) giveBack(of uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[of]--; s.used[of] == 0 {
		delete(s.used, of)
	}
}
