package rootfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"banger/internal/host"
)

// File types of inodes (inode(7)).
const (
	modeType = 0o170000
	modeFIFO = 0o010000
	modeDir  = 0o040000
	modeReg  = 0o100000
	modeLink = 0o120000
)

const (
	maxPath   = 4096
	maxName   = 255
	maxDepth  = 200
	maxFollow = 40 // symbolic links on the way to one file, as the kernel's
	maxXattrs = 2048
	// overhead bounds the headers and padding of a layer's stream, in bytes for each of its files.
	overhead = 8 << 10
)

// node is a file of a tree. All names of a file share its node.
type node struct {
	mode     uint16 // with its type
	uid, gid uint32
	mtime    time.Time
	size     int64
	link     string // the target of a symbolic link
	xattrs   map[string]string
	children map[string]*node // of a directory
	links    int              // names; directories do not count theirs

	layer, index int // the place of its content: the entry's number in the layer, from 0
	cleared      int // layers that have removed the entries of lower layers from it
	inode        uint32
	keep         *[]byte // gets a copy of its content; may be nil
}

// tree is the root file system of layers that are laid one over the other by the rules of OCI's
// image-spec, layer.md. It exists in memory only, without the contents of files.
type tree struct {
	root   *node
	limits Limits

	layer, index int   // of the next entry
	files        int   // entries and implied directories so far, of all layers
	bytes        int64 // of files, and a block of each directory
	text         int64 // of names, links and attributes

	aufs map[string]*node // see aufsLinks
}

func newTree(limits Limits) *tree {
	root := &node{mode: modeDir | 0o755, children: map[string]*node{}, layer: -1,
		mtime: epoch, inode: inodeRoot}
	return &tree{limits: limits, root: root}
}

// epoch is the time of directories that only a path implies.
var epoch = time.Unix(0, 0)

const whiteout = ".wh."

// treeText bounds names, links and attributes, in bytes for each allowed file.
const treeText = 512

var errSparse = errors.New("a file is stored without its holes (a sparse member); " +
	"make the tar without --sparse")

// count accounts for a file and its bytes.
func (t *tree) count(files int, bytes int64) error {
	if t.files += files; t.files > t.limits.Files {
		return fmt.Errorf("more than %d files, see image_max_files", t.limits.Files)
	}
	if bytes < 0 || bytes > t.limits.Bytes-t.bytes {
		return fmt.Errorf("more than %d bytes in files, see image_max_size", t.limits.Bytes)
	}
	t.bytes += bytes
	return nil
}

// countText accounts for n bytes of names, links and attributes.
func (t *tree) countText(n int) error {
	if most := treeText * int64(t.limits.Files); int64(n) > most-t.text {
		return fmt.Errorf("names, links and attributes of more than %d bytes, see image_max_files", most)
	}
	t.text += int64(n)
	return nil
}

// add adds the next entry of a layer. It ignores devices and headers without a file. An entry whose
// path leads out of the root is an error.
func (t *tree) add(h *tar.Header) error {
	if host.Sparse(h) {
		return errSparse
	}
	if err := t.count(1, h.Size); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo:
	default:
		return nil // the guest's own /dev has the devices
	}
	parts, err := split(h.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if h.Typeflag == tar.TypeDir {
			return t.fill(t.root, h)
		}
		return nil
	}
	if aufsOwn(parts) {
		return t.addAUFS(parts, h)
	}
	dir, err := t.dir(parts[:len(parts)-1])
	if err != nil {
		return err
	}
	name := parts[len(parts)-1]
	if err := t.countText(len(name)); err != nil {
		return err
	}
	if strings.HasPrefix(name, whiteout) {
		t.white(dir, name)
		return nil
	}
	if dir == t.root && name == lostFound {
		return nil
	}
	old := dir.children[name]
	if h.Typeflag == tar.TypeLink {
		return t.hardLink(dir, name, h)
	}
	if h.Typeflag == tar.TypeDir {
		if old != nil && old.children != nil {
			return t.fill(old, h)
		}
		if err := t.count(0, blockSize); err != nil {
			return err
		}
	}
	n := &node{links: 1}
	if err := t.fill(n, h); err != nil {
		return err
	}
	t.put(dir, name, n)
	return nil
}

// fill sets a node's attributes from an entry.
func (t *tree) fill(n *node, h *tar.Header) error {
	n.mode = uint16(h.Mode) & 0o7777
	if h.Uid < 0 || h.Gid < 0 || h.Uid > math.MaxUint32-1 || h.Gid > math.MaxUint32-1 {
		return fmt.Errorf("an impossible owner of %.200q", h.Name)
	}
	n.uid, n.gid, n.mtime = uint32(h.Uid), uint32(h.Gid), h.ModTime
	n.layer, n.index = t.layer, t.index
	switch h.Typeflag {
	case tar.TypeDir:
		n.mode |= modeDir
		if n.children == nil {
			n.children = map[string]*node{}
		}
	case tar.TypeSymlink:
		n.mode, n.link = modeLink|0o777, h.Linkname
		if n.link == "" || len(n.link) >= maxPath {
			return fmt.Errorf("an impossible symbolic link %.200q", h.Name)
		}
		if err := t.countText(len(n.link)); err != nil {
			return err
		}
	case tar.TypeFifo:
		n.mode |= modeFIFO
	default:
		n.mode |= modeReg
		n.size = h.Size
	}
	n.xattrs = nil
	total := 0
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || !xattrSupported(name) {
			continue
		}
		if total += len(name) + len(value) + 24; total > maxXattrs {
			return fmt.Errorf("extended attributes of more than %d bytes: %.200q", maxXattrs, h.Name)
		}
		if n.xattrs == nil {
			n.xattrs = map[string]string{}
		}
		n.xattrs[name] = value
	}
	return t.countText(total)
}

// hardLink adds a name to an existing file.
func (t *tree) hardLink(dir *node, name string, h *tar.Header) error {
	parts, err := split(h.Linkname)
	if err != nil {
		return fmt.Errorf("hard link %.200q: %w", h.Name, err)
	}
	target := t.linked(parts)
	if target == nil || target.children != nil {
		return fmt.Errorf("hard link %.200q to %.200q, which is no file of the root", h.Name, h.Linkname)
	}
	if dir.children[name] == target {
		return nil
	}
	if target.links >= maxLinks {
		return fmt.Errorf("more than %d names of one file: %.200q", maxLinks, h.Linkname)
	}
	target.links++
	t.put(dir, name, target)
	return nil
}

// put names a node; another node loses that name.
func (t *tree) put(dir *node, name string, n *node) {
	if old := dir.children[name]; old != nil {
		drop(old)
	}
	dir.children[name] = n
}

// drop removes a name of a node and those of all nodes in it.
func drop(n *node) {
	n.links--
	for _, c := range n.children {
		drop(c)
	}
}

// white hides entries of lower layers: the one that a whiteout names, or all of a directory.
func (t *tree) white(dir *node, name string) {
	if name == opaque {
		t.below(dir)
		return
	}
	hidden := strings.TrimPrefix(name, whiteout)
	if n := dir.children[hidden]; n != nil && t.below(n) {
		drop(n)
		delete(dir.children, hidden)
	}
}

// below removes the entries of lower layers from a node. It reports whether the node and all in it
// were of lower layers. It looks into a directory once for each layer, however often the layer
// repeats the whiteout.
func (t *tree) below(n *node) bool {
	if n.cleared <= t.layer {
		n.cleared = t.layer + 1
		for name, c := range n.children {
			if t.below(c) {
				drop(c)
				delete(n.children, name)
			}
		}
	}
	return n.layer != t.layer && len(n.children) == 0
}

// measure returns how many inodes and, at most, blocks the tree needs.
func (t *tree) measure() (inodes int, blocks int64) {
	seen := map[*node]bool{}
	var walk func(n *node)
	walk = func(n *node) {
		if n.links > 1 && n.children == nil {
			if seen[n] {
				return
			}
			seen[n] = true
		}
		inodes++
		blocks += (n.size + blockSize - 1) / blockSize
		if len(n.xattrs) > 0 {
			blocks++
		}
		if n.children != nil || len(n.link) >= fastSymlink {
			blocks++
		}
		var names int64
		for name, c := range n.children {
			names += int64(12 + len(name))
			walk(c)
		}
		blocks += names / (blockSize - 12 - maxName)
	}
	walk(t.root)
	return inodes, blocks
}
