package faultfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Tree is a directory in memory. It keeps no times and no extended attributes.
type Tree struct {
	nodes map[ID]*node
	last  ID
}

type attrs struct{ mode, uid, gid uint32 }

type node struct {
	attrs
	kind  uint32 // S_IFMT
	names map[string]ID
	link  string                // the target of a symbolic link
	pages map[int64]*[page]byte // of a file, by number; never changed, others are zeros
	size  int64
}

// page is the size of the pieces that files are kept in.
const page = 4096

func newTree() *Tree {
	root := &node{kind: syscall.S_IFDIR, names: make(map[string]ID)}
	return &Tree{nodes: map[ID]*node{Root: root}, last: Root}
}

func (t *Tree) next() ID {
	t.last++
	return t.last
}

// whole lets apply make a write as it was.
const whole = -1

// apply makes a change; of a write only the first bytes, or the whole. A change of what is not in
// the tree does nothing.
func (t *Tree) apply(o *Op, bytes int) {
	switch o.Kind {
	case Create, Mkdir, Mknod, Symlink:
		t.nodes[o.ID] = o.newNode()
		t.last = max(t.last, o.ID)
		t.set(o.Dir, o.Name, o.ID)
	case Link:
		t.set(o.Dir, o.Name, o.ID)
	case Unlink, Rmdir:
		t.set(o.Dir, o.Name, 0)
	case Rename:
		moved, other := t.get(o.Dir, o.Name), t.get(o.Dir2, o.Name2)
		if !o.Exchange {
			other = 0
		}
		t.set(o.Dir, o.Name, other)
		t.set(o.Dir2, o.Name2, moved)
	default:
		if n := t.nodes[o.ID]; n != nil {
			n.change(o, bytes)
		}
	}
}

func (t *Tree) get(dir ID, name string) ID {
	if d := t.nodes[dir]; d != nil {
		return d.names[name]
	}
	return 0
}

func (t *Tree) set(dir ID, name string, id ID) {
	d := t.nodes[dir]
	switch {
	case d == nil || d.names == nil:
	case id == 0:
		delete(d.names, name)
	default:
		d.names[name] = id
	}
}

func (o *Op) newNode() *node {
	n := &node{attrs: attrs{o.Mode & 0o7777, o.UID, o.GID}}
	switch o.Kind {
	case Create:
		n.kind = syscall.S_IFREG
	case Mkdir:
		n.kind, n.names = syscall.S_IFDIR, make(map[string]ID)
	case Mknod:
		n.kind = o.Mode & syscall.S_IFMT
	case Symlink:
		n.kind, n.link = syscall.S_IFLNK, string(o.Data)
	}
	return n
}

// change makes a change of content or attributes.
func (n *node) change(o *Op, bytes int) {
	switch o.Kind {
	case Write:
		data := o.Data
		if bytes != whole {
			data = data[:bytes]
		}
		n.write(o.Off, data)
	case Fallocate:
		switch {
		case o.Mode&unix.FALLOC_FL_PUNCH_HOLE != 0:
			n.zero(o.Off, o.Off+o.Size)
		case o.Mode&unix.FALLOC_FL_KEEP_SIZE == 0:
			n.size = max(n.size, o.Off+o.Size)
		}
	case Attr, Truncate:
		if o.Valid&fuse.FATTR_SIZE != 0 {
			n.zero(o.Size, n.size)
			n.size = o.Size
		}
		if o.Valid&fuse.FATTR_MODE != 0 {
			n.mode = o.Mode
		}
		if o.Valid&fuse.FATTR_UID != 0 {
			n.uid = o.UID
		}
		if o.Valid&fuse.FATTR_GID != 0 {
			n.gid = o.GID
		}
	}
}

func (n *node) write(off int64, data []byte) {
	if n.pages == nil {
		n.pages = make(map[int64]*[page]byte)
	}
	for len(data) > 0 {
		fresh := new([page]byte)
		if old := n.pages[off/page]; old != nil {
			*fresh = *old
		}
		some := copy(fresh[off%page:], data)
		n.pages[off/page] = fresh
		off, data = off+int64(some), data[some:]
		n.size = max(n.size, off)
	}
}

// zero makes a part of the file a hole.
func (n *node) zero(from, to int64) {
	for i, old := range n.pages {
		begin, end := max(from, i*page), min(to, (i+1)*page)
		switch {
		case begin >= end:
		case end-begin == page:
			delete(n.pages, i)
		default:
			fresh := *old
			clear(fresh[begin-i*page : end-i*page])
			n.pages[i] = &fresh
		}
	}
}

// path returns the name that a change is about, for messages.
func (t *Tree) path(o *Op) string {
	if o.Name != "" {
		return filepath.Join(t.pathOf(o.Dir), o.Name)
	}
	return t.pathOf(o.ID)
}

func (t *Tree) pathOf(id ID) string {
	if id == Root {
		return "."
	}
	for dir, n := range t.nodes {
		for name, of := range n.names {
			if of == id {
				return filepath.Join(t.pathOf(dir), name)
			}
		}
	}
	return "(removed)"
}

// WriteTo makes the tree in an empty directory.
func (t *Tree) WriteTo(dir string) error {
	made := make(map[ID]string)
	if err := t.write(Root, dir, made); err != nil {
		return fmt.Errorf("cannot make the tree of a power cut: %w", err)
	}
	return nil
}

func (t *Tree) write(id ID, path string, made map[ID]string) error {
	n := t.nodes[id]
	if first := made[id]; first != "" {
		return os.Link(first, path)
	}
	made[id] = path
	var err error
	switch n.kind {
	case syscall.S_IFDIR:
		if id != Root {
			err = os.Mkdir(path, 0o700)
		}
		for name, child := range n.names {
			if err == nil {
				err = t.write(child, filepath.Join(path, name), made)
			}
		}
	case syscall.S_IFLNK:
		return os.Symlink(n.link, path)
	case syscall.S_IFREG:
		err = n.writeFile(path)
	default:
		err = syscall.Mknod(path, n.kind|0o600, 0)
	}
	if err == nil {
		err = os.Lchown(path, int(n.uid), int(n.gid))
	}
	if err == nil {
		err = syscall.Chmod(path, n.mode)
	}
	return err
}

func (n *node) writeFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	for i, content := range n.pages {
		if err == nil {
			_, err = f.WriteAt(content[:], i*page)
		}
	}
	return errors.Join(err, f.Truncate(n.size), f.Close())
}
