package faultfs

import (
	"maps"
	"math/rand/v2"
)

// Kind is what a change changes.
type Kind int

// The kinds of changes. Link adds a name of an inode.
const (
	Create Kind = iota
	Mkdir
	Mknod
	Symlink
	Link
	Unlink
	Rmdir
	Rename
	Attr
	Truncate
	Fallocate
	Write
	Sync
)

func (k Kind) String() string {
	return [...]string{"create", "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename",
		"attr", "truncate", "fallocate", "write", "sync"}[k]
}

// ID is an inode of a record. The number of a removed one is not used again.
type ID int

// Root is the directory below the layer.
const Root ID = 1

// Op is one change, or one sync.
type Op struct {
	Kind      Kind
	ID        ID     // the inode that is new, linked, written, changed or synced
	Dir, Dir2 ID     // of Name and Name2
	Name      string // that appears or goes
	Name2     string // the new one of a rename
	Exchange  bool   // a rename exchanges both names
	Valid     uint32 // which attributes are set: the FATTR_ of linux/fuse.h
	Mode      uint32 // permissions; of Mknod with the type, of Fallocate its flags
	UID, GID  uint32
	Off, Size int64
	Data      []byte // of a write, or a symbolic link's target
}

// Record is all changes to a directory since StartRecord.
type Record struct {
	base *Tree
	ops  []Op
	// needs are, for each step, those without which no file system keeps it: earlier changes of
	// the same names. EndRecord fills it.
	needs [][]int
}

// StartRecord begins a record with what is in the directory now. All of that counts as synced.
func (l *Layer) StartRecord() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record = &Record{base: l.tree.clone()}
}

// Position returns how many changes and syncs are recorded so far.
func (l *Layer) Position() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.record.ops)
}

// EndRecord ends the record and returns it.
func (l *Layer) EndRecord() *Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.record
	l.record = nil
	r.findNeeds()
	return r
}

// Len returns the number of changes and syncs.
func (r *Record) Len() int { return len(r.ops) }

// IsSync reports whether the step at a position is a sync.
func (r *Record) IsSync(at int) bool { return r.ops[at].Kind == Sync }

// All returns the tree after the first n steps, as after kill -9.
func (r *Record) All(n int) *Tree {
	t := r.base.clone()
	for i := range r.ops[:n] {
		t.apply(&r.ops[i], whole)
	}
	return t
}

// Synced returns the tree of what was synced in the first n steps, and nothing else. This is less
// than any file system of Linux keeps: a sync of a file keeps its content and attributes, but no
// name. A sync of a directory keeps the names in it, but not its own name.
func (r *Record) Synced(n int) *Tree {
	t := r.base.clone()
	for i, kept := range r.synced(n) {
		if kept {
			t.apply(&r.ops[i], whole)
		}
	}
	return t
}

// Random returns a tree with what was synced in the first n steps, and with each later change or
// without it. Of the last write of a file there may be a part, in sectors of 512 or 4,096 bytes.
func (r *Record) Random(n int, rnd *rand.Rand) *Tree {
	kept := r.synced(n)
	part := make(map[int]int)
	last := make(map[ID]int)
	for i := range r.ops[:n] {
		if kept[i] || r.ops[i].Kind == Sync || rnd.IntN(2) == 0 {
			continue
		}
		r.keep(kept, i)
		if r.ops[i].Kind == Write {
			last[r.ops[i].ID] = i
		}
	}
	for i := range r.ops[:n] {
		if j, ok := last[r.ops[i].ID]; !ok || j != i {
			continue
		}
		sector := []int{512, 4096}[rnd.IntN(2)]
		if sectors := len(r.ops[i].Data) / sector; sectors > 0 && rnd.IntN(2) == 0 {
			part[i] = rnd.IntN(sectors) * sector
		}
	}
	t := r.base.clone()
	for i := range r.ops[:n] {
		if !kept[i] {
			continue
		}
		if bytes, torn := part[i]; torn {
			t.apply(&r.ops[i], bytes)
		} else {
			t.apply(&r.ops[i], whole)
		}
	}
	return t
}

// names returns the names that a change changes.
func (o *Op) names() []slot {
	switch o.Kind {
	case Create, Mkdir, Mknod, Symlink, Link, Unlink, Rmdir:
		return []slot{{o.Dir, o.Name}}
	case Rename:
		return []slot{{o.Dir, o.Name}, {o.Dir2, o.Name2}}
	}
	return nil
}

type slot struct {
	dir  ID
	name string
}

// synced returns which of the first n steps were made durable by syncs among them.
func (r *Record) synced(n int) []bool {
	kept := make([]bool, n)
	open := make(map[ID][]int) // not yet synced, by the inode whose sync makes them durable
	for i := range r.ops[:n] {
		o := &r.ops[i]
		switch names := o.names(); {
		case o.Kind == Sync:
			for _, j := range open[o.ID] {
				r.keep(kept, j)
			}
			delete(open, o.ID)
		case names == nil:
			open[o.ID] = append(open[o.ID], i)
		default:
			for _, s := range names {
				open[s.dir] = append(open[s.dir], i)
			}
		}
	}
	return kept
}

func (r *Record) findNeeds() {
	r.needs = make([][]int, len(r.ops))
	last := make(map[slot]int)
	t := r.base.clone()
	moved := make(map[ID]int) // the last change of a name of an inode
	for i := range r.ops {
		o := &r.ops[i]
		for _, s := range o.names() {
			if j, ok := last[s]; ok {
				r.needs[i] = append(r.needs[i], j)
			}
			last[s] = i
			inode := o.ID
			if inode == 0 {
				inode = t.nodes[s.dir].names[s.name]
			}
			if j, ok := moved[inode]; ok {
				r.needs[i] = append(r.needs[i], j)
			}
			if inode != 0 {
				moved[inode] = i
			}
		}
		if j, ok := moved[o.Dir]; ok && o.Kind == Rename && o.Dir != o.Dir2 {
			r.needs[i] = append(r.needs[i], j) // the directory that it leaves
		}
		if o.names() != nil {
			t.apply(o, whole)
		}
	}
}

// keep keeps step i and all that it needs.
func (r *Record) keep(kept []bool, i int) {
	for todo := []int{i}; len(todo) > 0; {
		i, todo = todo[len(todo)-1], todo[:len(todo)-1]
		if kept[i] {
			continue
		}
		kept[i] = true
		todo = append(todo, r.needs[i]...)
	}
}

func (t *Tree) clone() *Tree {
	c := &Tree{nodes: make(map[ID]*node, len(t.nodes)), last: t.last}
	for id, n := range t.nodes {
		same := *n
		same.pages = maps.Clone(n.pages)
		same.names = maps.Clone(n.names)
		c.nodes[id] = &same
	}
	return c
}
