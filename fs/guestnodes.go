package fs

import (
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/vmm"
	"banger/vmm/guest/sftp"
)

// Files of guests have numbers of their own: bit 63 and a count. Unlike those that are computed (nodeid.go) they are kept in a table, while
// the kernel knows them.
const guestBit = 1 << 63

// A guest can have any number of files, and a reader who walks them makes the kernel know each.
const (
	maxGuestNodes = 1 << 20 // in the table, of all guests
	maxGuestNames = 1 << 20 // that are read of one directory
)

var (
	errManyNodes = fmt.Errorf("too many files of guests are in use: %w", vmm.ErrNoMemory)
	errManyNames = fmt.Errorf("a directory of the guest has over %d names: %w", maxGuestNames, vmm.ErrTooBig)
)

// guestNode is one file of a guest that the kernel knows, or that leads to one.
type guestNode struct {
	// Immutable.
	id     uint64
	serial uint64 // the VM's
	kind   uint32 // S_IFMT; a file of another kind is another node
	// Guarded by guestNodes.mu.
	parent  *guestNode // nil for the root of a guest, and for what has no name any more
	name    string
	kids    map[string]*guestNode
	lookups uint64
	size    uint64 // as last told, for a file that is open and has no name any more
	mode    uint32
	said    sftp.Attr // of a directory: what the guest said of it when a file was made in it
	until   time.Time // and how long that may be told
}

// guestNodes is the table.
type guestNodes struct {
	max   int        // immutable
	mu    sync.Mutex // guards what follows, and nodes
	known map[uint64]*guestNode
	each  map[uint64]int // how many are of a VM, by its serial
	count uint64         // of the numbers given
}

func newGuestNodes(max int) *guestNodes {
	return &guestNodes{max: max, known: make(map[uint64]*guestNode), each: make(map[uint64]int)}
}

// isGuest reports whether a node is a file of a guest, the directory that shows its root not among them.
func isGuest(node uint64) bool { return node&guestBit != 0 }

// get gives the node of that number, nil for none. The directory that shows a guest's root is made a node when it is first asked for, and
// stays one until its VM is gone.
func (t *guestNodes) get(id uint64) *guestNode {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.known[id]
	if n == nil && !isGuest(id) {
		serial, _, _ := splitID(id)
		n = &guestNode{id: id, serial: serial, kind: syscall.S_IFDIR, lookups: 1}
		t.addLocked(n)
	}
	return n
}

func (t *guestNodes) addLocked(n *guestNode) {
	t.known[n.id] = n
	t.each[n.serial]++
}

// path is where the node is in its guest; ErrNotFound for what has no name any more.
func (t *guestNodes) path(n *guestNode) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var parts []string
	length := 0
	for ; n.parent != nil; n = n.parent {
		parts = append(parts, n.name)
		if length += len(n.name) + 1; length >= syscall.PathMax {
			return "", vmm.ErrNameTooLong
		}
	}
	if isGuest(n.id) {
		return "", vmm.ErrNotFound
	}
	if parts == nil {
		return "/", nil
	}
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		b.WriteByte('/')
		b.WriteString(parts[i])
	}
	return b.String(), nil
}

// named notes a look-up of a name that is a file of that kind, and gives its node.
func (t *guestNodes) named(dir *guestNode, name string, kind uint32) (*guestNode, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := dir.kids[name]
	if n != nil && n.kind != kind {
		t.cutLocked(n)
		n = nil
	}
	if n == nil {
		if t.each[dir.serial] >= t.max-len(t.known) { // one guest's files leave as much room as they take
			return nil, errManyNodes
		}
		t.count++
		n = &guestNode{id: guestBit | t.count, serial: dir.serial, kind: kind, parent: dir, name: strings.Clone(name)}
		if dir.kids == nil {
			dir.kids = make(map[string]*guestNode)
		}
		dir.kids[n.name] = n
		t.addLocked(n)
	}
	n.lookups++
	return n, nil
}

// forget takes back so many look-ups.
func (t *guestNodes) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.known[id]; n != nil {
		n.lookups -= min(n.lookups, lookups)
		t.freeLocked(n)
	}
}

// freeLocked drops a node that the kernel does not know and that leads to none it knows.
func (t *guestNodes) freeLocked(n *guestNode) {
	for n != nil && n.lookups == 0 && len(n.kids) == 0 {
		parent := n.parent
		delete(t.known, n.id)
		if t.each[n.serial]--; t.each[n.serial] == 0 {
			delete(t.each, n.serial)
		}
		if parent != nil && parent.kids[n.name] == n {
			delete(parent.kids, n.name)
		}
		n.parent = nil
		n = parent
	}
}

// cutLocked takes a node's name.
func (t *guestNodes) cutLocked(n *guestNode) {
	parent := n.parent
	delete(parent.kids, n.name)
	n.parent = nil
	t.freeLocked(n)
	t.freeLocked(parent)
}

// heard notes what a guest says of a directory, true for so long.
func (t *guestNodes) heard(dir *guestNode, a sftp.Attr, valid time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	dir.said, dir.until = a, time.Now().Add(valid)
}

// changes notes that what was heard of a directory is true no more.
func (t *guestNodes) changes(dir *guestNode) { t.heard(dir, sftp.Attr{}, 0) }

// still gives what was heard of a directory and how long that is true, 0 if it is not.
func (t *guestNodes) still(dir *guestNode) (sftp.Attr, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return dir.said, max(0, time.Until(dir.until))
}

// told notes what the kernel is told of a node.
func (t *guestNodes) told(n *guestNode, size uint64, mode uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.size, n.mode = size, mode
}

// grown notes that a file was written up to there.
func (t *guestNodes) grown(n *guestNode, size uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.size = max(n.size, size)
}

// last gives what the kernel was last told.
func (t *guestNodes) last(n *guestNode) (size uint64, mode uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.size, n.mode
}

// removed notes that there is no such name any more.
func (t *guestNodes) removed(dir *guestNode, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := dir.kids[name]; n != nil {
		t.cutLocked(n)
	}
}

// renamed notes that what was a name in one directory is now one in another, in place of what had it.
func (t *guestNodes) renamed(from *guestNode, old string, to *guestNode, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := from.kids[old]
	if replaced := to.kids[name]; replaced != nil && replaced != n {
		t.cutLocked(replaced)
	}
	if n == nil {
		return
	}
	delete(from.kids, old)
	n.parent, n.name = to, strings.Clone(name)
	if to.kids == nil {
		to.kids = make(map[string]*guestNode)
	}
	to.kids[n.name] = n
	t.freeLocked(from)
}
