package fs

import (
	"slices"
	"sync"
)

// The kernel locks a file's inode during a write(2). An open with O_TRUNC, as a shell's, waits for
// that lock and cannot be killed: nobody could write `kill` while a `start` blocks. So each look-up
// of a writable file returns a node of its own, with the same inode number for stat(2), and no two
// writers share a lock.

// nodes holds the nodes that the kernel knows of writable and watchable files.
type nodes struct {
	mu    sync.Mutex           // guards what follows
	known map[uint64][]nodeUse // by the file's plain number; mostly one
	last  uint16
	aim   uint64     // the node that the nudger touches now, 0 for none
	hit   *sync.Cond // signals that aim is 0
}

// nodeUse counts how the kernel knows a node.
type nodeUse struct {
	node    uint64
	lookups uint64 // that were answered with it
	writer  bool   // it was opened to be written
}

func newNodes() *nodes {
	n := &nodes{known: make(map[uint64][]nodeUse)}
	n.hit = sync.NewCond(&n.mu)
	return n
}

// findLocked returns the use of a node, nil for none. The result is valid until the next change of
// the file's uses.
func (n *nodes) findLocked(file, node uint64) *nodeUse {
	uses := n.known[file]
	for i := range uses {
		if uses[i].node == node {
			return &uses[i]
		}
	}
	return nil
}

// fresh returns a new node for a look-up of the file.
func (n *nodes) fresh(file uint64) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	for range 1 << 16 { // all numbers are in use only if the file is open that often
		n.last++
		if n.last != 0 && n.findLocked(file, file|uint64(n.last)) == nil {
			break
		}
	}
	node := file | uint64(n.last)
	n.addLocked(file, node)
	return node
}

// add counts a look-up that is answered with the node.
func (n *nodes) add(file, node uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addLocked(file, node)
}

func (n *nodes) addLocked(file, node uint64) {
	if k := n.findLocked(file, node); k != nil {
		k.lookups++
		return
	}
	n.known[file] = append(n.known[file], nodeUse{node: node, lookups: 1})
}

// forget subtracts look-ups. It reports whether the kernel no longer knows the node, and whether it
// was the last of its file.
func (n *nodes) forget(node, lookups uint64) (gone, last bool) {
	file := plainID(node)
	n.mu.Lock()
	defer n.mu.Unlock()
	if k := n.findLocked(file, node); k != nil && k.lookups > lookups {
		k.lookups -= lookups
		return false, false
	}
	left := slices.DeleteFunc(n.known[file], func(k nodeUse) bool { return k.node == node })
	if len(left) > 0 {
		n.known[file] = left
		return true, false
	}
	delete(n.known, file)
	return true, true
}

// writing notes that the node is being opened for writing, before any write(2) locks it. The nudger
// does not touch it from then on.
func (n *nodes) writing(node uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if k := n.findLocked(plainID(node), node); k != nil {
		k.writer = true
	}
	for n.aim == node {
		n.hit.Wait()
	}
}

// watchable returns the nodes of a file that may have watchers.
func (n *nodes) watchable(file uint64) []uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []uint64
	for _, k := range n.known[file] {
		if !k.writer {
			list = append(list, k.node)
		}
	}
	return list
}

// touch calls f while the nudger's look-ups of the node's file return that node. It does nothing
// for a node that is written.
func (n *nodes) touch(node uint64, f func()) {
	n.mu.Lock()
	if k := n.findLocked(plainID(node), node); k == nil || k.writer {
		n.mu.Unlock()
		return
	}
	n.aim = node
	n.mu.Unlock()
	f()
	n.mu.Lock()
	n.aim = 0
	n.hit.Broadcast()
	n.mu.Unlock()
}

// aimed returns the node that the nudger touches; false if it belongs to another file.
func (n *nodes) aimed(file uint64) (uint64, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.aim, n.aim != 0 && plainID(n.aim) == file
}
