package guestfs

import (
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/vmm"
	"banger/vmm/guest/sftp"
)

// fileBit marks the node numbers of guests' files. The rest is a count. Unlike the computed numbers
// of the other files, these are in a table while the kernel knows them.
const fileBit = 1 << 63

// A guest can have any number of files, and a walk makes the kernel know each.
const (
	maxNodes = 1 << 20 // in the table, of all guests
	maxNames = 1 << 20 // in one directory
)

var (
	errManyNodes = fmt.Errorf("too many files of guests are in use: %w", vmm.ErrNoMemory)
	errManyNames = fmt.Errorf("a directory of the guest has over %d names: %w",
		maxNames, vmm.ErrTooBig)
	errNoName = fmt.Errorf("the file has no name any more: %w", vmm.ErrNotFound)
)

// node is a file of a guest that the kernel knows, or that leads to one.
type node struct {
	// Immutable.
	id     uint64
	serial uint64 // of the VM
	kind   uint32 // S_IFMT; a file of another kind is another node
	// Guarded by nodes.mu.
	parent  *node // nil for the root of a guest, and for a file without a name
	name    string
	kids    map[string]*node
	lookups uint64
	size    uint64 // last sent to the kernel; of an open file without a name, the only source
	mode    uint32
	report  sftp.Attr // of a directory: sent by the agent when a file was created in it
	until   time.Time // when report expires
}

// nodes is the table.
type nodes struct {
	max  int                                   // immutable, as is root
	root func(uint64) (serial uint64, ok bool) // see Mount

	mu    sync.Mutex // guards what follows, and the nodes
	known map[uint64]*node
	each  map[uint64]int // nodes by VM
	count uint64         // of numbers used
}

func newNodes(most int, root func(uint64) (uint64, bool)) *nodes {
	return &nodes{max: most, root: root, known: make(map[uint64]*node), each: make(map[uint64]int)}
}

// IsFile reports whether a node is below the directory that shows a guest's root.
func IsFile(node uint64) bool { return node&fileBit != 0 }

// get returns the node with a number, nil for none. It makes the node of a root at its first use;
// that one lasts until its VM is gone.
func (t *nodes) get(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.known[id]
	if n != nil {
		return n
	}
	serial, ok := t.root(id)
	if !ok {
		return nil
	}
	n = &node{id: id, serial: serial, kind: syscall.S_IFDIR, lookups: 1}
	t.addLocked(n)
	return n
}

func (t *nodes) addLocked(n *node) {
	t.known[n.id] = n
	t.each[n.serial]++
}

// path returns the path of a node in its guest, or errNoName.
func (t *nodes) path(n *node) (string, error) {
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
	if IsFile(n.id) {
		return "", errNoName
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

// named counts a look-up of a name that is a file of that kind, and returns its node.
func (t *nodes) named(dir *node, name string, kind uint32) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := dir.kids[name]
	if n != nil && n.kind != kind {
		t.cutLocked(n)
		n = nil
	}
	if n == nil {
		if t.each[dir.serial] >= t.max-len(t.known) { // one guest leaves as much room as it uses
			return nil, errManyNodes
		}
		t.count++
		n = &node{id: fileBit | t.count, serial: dir.serial, kind: kind}
		t.addLocked(n)
		t.moveLocked(n, dir, name)
	}
	n.lookups++
	return n, nil
}

// moveLocked makes a node without a name a name in a directory.
func (t *nodes) moveLocked(n, dir *node, name string) {
	n.parent, n.name = dir, strings.Clone(name)
	if dir.kids == nil {
		dir.kids = make(map[string]*node)
	}
	dir.kids[n.name] = n
}

// forget subtracts look-ups of a node.
func (t *nodes) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.known[id]; n != nil {
		n.lookups -= min(n.lookups, lookups)
		t.freeLocked(n)
	}
}

// freeLocked drops a node unless the kernel knows it or a node below it.
func (t *nodes) freeLocked(n *node) {
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

// cutLocked removes the name of a node.
func (t *nodes) cutLocked(n *node) {
	parent := n.parent
	delete(parent.kids, n.name)
	n.parent = nil
	t.freeLocked(n)
	t.freeLocked(parent)
}

// keepReport notes what a guest reports of a directory, and for how long that holds.
func (t *nodes) keepReport(dir *node, a sftp.Attr, valid time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	dir.report, dir.until = a, time.Now().Add(valid)
}

// changed notes that the last report of a node no longer holds.
func (t *nodes) changed(n *node) { t.keepReport(n, sftp.Attr{}, 0) }

// reported returns the last report of a node and how long it still holds, 0 if it does not.
func (t *nodes) reported(n *node) (sftp.Attr, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.report, max(0, time.Until(n.until))
}

// sizeAndMode returns what the kernel last got for a node, after setting it if set is not nil.
func (t *nodes) sizeAndMode(n *node, set func()) (size uint64, mode uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if set != nil {
		set()
	}
	return n.size, n.mode
}

// removed notes that a directory has no such name any more.
func (t *nodes) removed(dir *node, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := dir.kids[name]; n != nil {
		t.cutLocked(n)
	}
}

// renamed notes that a name moved to another directory, or to another name, and replaced that.
func (t *nodes) renamed(from *node, old string, to *node, name string) {
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
	t.moveLocked(n, to, name)
	t.freeLocked(from)
}
