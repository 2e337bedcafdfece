package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"slices"
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
	// overhead bounds what a layer's stream may have beside the files' bytes, for each of its files: headers, padding.
	overhead = 8 << 10
)

// node is a file of a tree. A file of several names is one node.
type node struct {
	mode     uint16 // with its type
	uid, gid uint32
	mtime    time.Time
	size     int64
	link     string // where a symbolic link points
	xattrs   map[string]string
	children map[string]*node // of a directory
	links    int              // names, of what is no directory

	layer, index int // where its content is: the entry's place in the layer, from 0
	cleared      int // layers that have removed what those below them have in it
	inode        uint32
	keep         *[]byte // its content is wanted here, too
}

// tree is a root file system as the layers make it, laid one over the other by the rules of OCI's image-spec, layer.md. It
// exists in memory only, without the files' content.
type tree struct {
	root   *node
	limits Limits

	layer, index int   // of the entry that is added
	files        int   // entries and made directories so far, of all layers
	bytes        int64 // of files, and a block of each directory
	text         int64 // of names, links and attributes
}

func newTree(limits Limits) *tree {
	return &tree{limits: limits, root: &node{mode: modeDir | 0o755, children: map[string]*node{}, layer: -1, mtime: time.Unix(0, 0), inode: inodeRoot}}
}

const whiteout = ".wh."

// treeText bounds names, links and attributes, in bytes for each file that is allowed.
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

// countText accounts for what is kept of a file beside its content.
func (t *tree) countText(n int) error {
	if most := treeText * int64(t.limits.Files); int64(n) > most-t.text {
		return fmt.Errorf("names, links and attributes of more than %d bytes, see image_max_files", most)
	}
	t.text += int64(n)
	return nil
}

// add takes in the next entry of a layer. What is no part of a root file system is left out; what
// would lead out of it is an error.
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
		return nil // devices, which the guest's own /dev has, and headers of no file
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
	dir, err := t.dir(parts[:len(parts)-1])
	if err != nil {
		return err
	}
	name := parts[len(parts)-1]
	if err := t.countText(len(name)); err != nil {
		return err
	}
	if hidden, ok := strings.CutPrefix(name, whiteout); ok {
		t.white(dir, hidden)
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

// split takes a path apart. It is the path of something in the root, whether it begins with a slash or not.
func split(name string) ([]string, error) {
	if len(name) > maxPath {
		return nil, fmt.Errorf("a path of %d bytes, %d are allowed", len(name), maxPath)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, fmt.Errorf("a path with a NUL byte: %s", base(name))
	}
	var parts []string
	for _, p := range strings.Split(name, "/") {
		switch {
		case p == "" || p == ".":
		case p == "..":
			return nil, fmt.Errorf("a path that leads out of the root: %.200q", name)
		case len(p) > maxName:
			return nil, fmt.Errorf("a name of %d bytes, %d are allowed, that begins %.40q", len(p), maxName, p)
		default:
			parts = append(parts, p)
		}
	}
	if len(parts) > maxDepth {
		return nil, fmt.Errorf("a path of %d directories, %d are allowed, that begins %.40q", len(parts), maxDepth, name)
	}
	return parts, nil
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

// hardLink gives a file that is there another name.
func (t *tree) hardLink(dir *node, name string, h *tar.Header) error {
	parts, err := split(h.Linkname)
	if err != nil {
		return fmt.Errorf("hard link %.200q: %w", h.Name, err)
	}
	var target *node
	if len(parts) > 0 {
		if from, err := t.walk(parts[:len(parts)-1], false); err == nil && from != nil {
			target = from.children[parts[len(parts)-1]]
		}
	}
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

// put gives a name to a node; what had it loses it.
func (t *tree) put(dir *node, name string, n *node) {
	if old := dir.children[name]; old != nil {
		drop(old)
	}
	dir.children[name] = n
}

// drop takes a name from a node, and from all that is in it.
func drop(n *node) {
	n.links--
	for _, c := range n.children {
		drop(c)
	}
}

// white hides what the layers below this one have: a name, or all names of a directory.
func (t *tree) white(dir *node, hidden string) {
	const opaque = ".wh..opq"
	if hidden == opaque {
		t.below(dir)
		return
	}
	if n := dir.children[hidden]; n != nil && t.below(n) {
		drop(n)
		delete(dir.children, hidden)
	}
}

// below removes what is in a node and not of this layer, and reports whether nothing of this layer is left, the node itself counted.
// It looks at what is in a directory once for each layer, whatever the layer repeats.
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

// dir finds a directory, which is made if it is not there. Symbolic links on the way lead where they would in a root that is this tree.
func (t *tree) dir(parts []string) (*node, error) { return t.walk(parts, true) }

// walk follows parts from the root. Without make it gives nil for what is not there.
func (t *tree) walk(parts []string, make bool) (*node, error) {
	at := []*node{t.root} // the way, for ..
	rest := slices.Clone(parts)
	follows := 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		here := at[len(at)-1]
		switch name {
		case "", ".":
			continue
		case "..": // of a symbolic link; the root's parent is the root
			at = at[:max(1, len(at)-1)]
			continue
		}
		n := here.children[name]
		switch {
		case n == nil && !make:
			return nil, nil
		case n == nil:
			if len(name) > maxName || len(at) > maxDepth {
				return nil, errors.New("a symbolic link leads to a path that is too long")
			}
			if err := errors.Join(t.count(1, blockSize), t.countText(len(name))); err != nil {
				return nil, err
			}
			n = &node{mode: modeDir | 0o755, mtime: time.Unix(0, 0), children: map[string]*node{}, links: 1, layer: t.layer, index: -1}
			here.children[name] = n
			at = append(at, n)
		case n.children != nil:
			at = append(at, n)
		case n.mode&modeType == modeLink:
			if follows++; follows > maxFollow {
				return nil, fmt.Errorf("symbolic links lead in a circle: %s", base(name))
			}
			if strings.HasPrefix(n.link, "/") {
				at = at[:1]
			}
			rest = append(strings.Split(n.link, "/"), rest...)
			if len(rest) > maxPath {
				return nil, errors.New("symbolic links lead to a path that is too long")
			}
		case make:
			return nil, fmt.Errorf("a file is in the place of a directory: %s", base(name))
		default:
			return nil, nil
		}
	}
	return at[len(at)-1], nil
}

// follow gives what a path leads to in the tree, nil if that is nothing.
func (t *tree) follow(name string) *node {
	parts, err := split(name)
	if err != nil {
		return nil
	}
	for range maxFollow {
		if len(parts) == 0 {
			return t.root
		}
		dir, err := t.walk(parts[:len(parts)-1], false)
		if err != nil || dir == nil {
			return nil
		}
		n := dir.children[parts[len(parts)-1]]
		if n == nil || n.mode&modeType != modeLink {
			return n
		}
		if strings.HasPrefix(n.link, "/") {
			parts = nil
		} else {
			parts = parts[:len(parts)-1]
		}
		for _, p := range strings.Split(n.link, "/") {
			switch p {
			case "", ".":
			case "..": // by name: enough for links within directories that are none themselves
				parts = parts[:max(0, len(parts)-1)]
			default:
				parts = append(slices.Clip(parts), p)
			}
		}
	}
	return nil
}

// measure counts the inodes and the blocks that the tree needs, generously.
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
