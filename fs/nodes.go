package fs

import (
	"slices"
	"sync"
)

// The kernel locks a file's inode while a write(2) to it is under way, and who opens the file with O_TRUNC meanwhile, as a shell does,
// waits for that lock and cannot even be killed: nobody could write `kill` while a `start` blocks. So each look-up of a file that can be
// written gets a node of its own, with the same inode number for stat(2); a writer's lock is nobody else's.

// nodes are those that the kernel knows of files that can be written or watched.
type nodes struct {
	mu    sync.Mutex           // guards what follows
	known map[uint64][]nodeUse // by the file's plain number: mostly one, and there may be as many files as VMs have
	last  uint16
	aim   uint64     // that the nudger is about to touch, 0 for none
	hit   *sync.Cond // aim has become 0
}

// nodeUse is what the kernel was told of a node and has not forgotten.
type nodeUse struct {
	node    uint64
	lookups uint64 // answered with it
	writer  bool   // it was opened to be written
}

func newNodes() *nodes {
	n := &nodes{known: make(map[uint64][]nodeUse)}
	n.hit = sync.NewCond(&n.mu)
	return n
}

// findLocked gives what is known of a node, nil for nothing; until the next change of its file's.
func (n *nodes) findLocked(file, node uint64) *nodeUse {
	uses := n.known[file]
	for i := range uses {
		if uses[i].node == node {
			return &uses[i]
		}
	}
	return nil
}

// fresh gives a number for a look-up of the file.
func (n *nodes) fresh(file uint64) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	for range 1 << 16 { // all are taken only if that many have the file open
		n.last++
		if n.last != 0 && n.findLocked(file, file|uint64(n.last)) == nil {
			break
		}
	}
	node := file | uint64(n.last)
	n.addLocked(file, node)
	return node
}

// add notes a look-up that is answered with the node.
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

// forget takes back so many look-ups, and reports whether the kernel knows the node no more, and whether it was the last of its file.
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

// writing notes that the node is opened to be written, before any write(2) holds its lock: the nudger leaves it alone from here on.
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

// watchable are the nodes of a file that somebody may watch.
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

// touch calls f while the nudger's look-ups of the node's file give that node, unless somebody writes it.
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

// aimed gives the node that the nudger looks up; false if it is of another file.
func (n *nodes) aimed(file uint64) (uint64, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.aim, n.aim != 0 && plainID(n.aim) == file
}
