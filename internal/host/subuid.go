package host

import (
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"time"
)

// subuidAge is how old the known ranges may be.
const subuidAge = 10 * time.Second

// Subuids knows whose the subordinate uids are (subuid(5)). A user's processes may have any of
// hers, in a user namespace, and keep her groups: what each uid may do is to be counted for the
// user. The zero value reads /etc/subuid.
type Subuids struct {
	path string // another file than /etc/subuid

	mu   sync.Mutex // guards what follows
	read time.Time
	all  []subuids
}

// subuids is one range.
type subuids struct{ user, first, count uint32 }

// User returns the user whose subordinate uid this is, or the uid itself.
func (s *Subuids) User(uid uint32) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.read.IsZero() || now.Sub(s.read) > subuidAge {
		s.read = now
		s.readLocked()
	}
	for _, r := range s.all {
		if uid-r.first < r.count { // below first, the difference is huge
			return r.user
		}
	}
	return uid
}

// readLocked reads the ranges. Without a readable file there are none.
func (s *Subuids) readLocked() {
	path := s.path
	if path == "" {
		path = "/etc/subuid"
	}
	s.all = nil
	text, err := os.ReadFile(path)
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		words := strings.Split(strings.TrimSpace(line), ":")
		if len(words) != 3 {
			continue
		}
		id := words[0]
		if u, err := user.Lookup(id); err == nil {
			id = u.Uid
		}
		owner, e1 := strconv.ParseUint(id, 10, 32)
		first, e2 := strconv.ParseUint(words[1], 10, 32)
		count, e3 := strconv.ParseUint(words[2], 10, 32)
		if e1 == nil && e2 == nil && e3 == nil {
			s.all = append(s.all, subuids{uint32(owner), uint32(first), uint32(count)})
		}
	}
}
