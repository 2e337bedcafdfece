package rootfs

import (
	"archive/tar"
	"slices"
	"strings"
)

// AUFS kept its own files below names that begin with aufsPrefix, and layers that old versions of
// docker made of it have them still. They belong to no image (moby, pkg/archive/diff.go). The
// opaque marker has that prefix, too, and is part of image-spec.
const (
	aufsPrefix = ".wh..wh."
	opaque     = ".wh..wh..opq"
	// aufsLinks is the directory at the root with the files that have several names. Hard links
	// of the same layer lead to them.
	aufsLinks = ".wh..wh.plnk"
)

// aufsOwn reports whether a path is AUFS's own: one of its names has the prefix, and it is not an
// opaque marker.
func aufsOwn(parts []string) bool {
	n := slices.IndexFunc(parts, func(p string) bool { return strings.HasPrefix(p, aufsPrefix) })
	return n >= 0 && (n < len(parts)-1 || parts[n] != opaque)
}

// addAUFS drops a file of AUFS's own. It keeps one that hard links of this layer may lead to.
func (t *tree) addAUFS(parts []string, h *tar.Header) error {
	if parts[0] != aufsLinks || len(parts) != 2 || h.Typeflag != tar.TypeReg {
		return nil
	}
	n := new(node)
	if err := t.fill(n, h); err != nil {
		return err
	}
	if err := t.countText(len(parts[1])); err != nil {
		return err
	}
	if t.aufs == nil {
		t.aufs = map[string]*node{}
	}
	t.aufs[parts[1]] = n
	return nil
}

// linked returns the file to which a hard link leads, nil if there is none.
func (t *tree) linked(parts []string) *node {
	if len(parts) == 2 && parts[0] == aufsLinks {
		if n := t.aufs[parts[1]]; n != nil && n.layer == t.layer {
			return n
		}
		return nil
	}
	if len(parts) == 0 {
		return nil
	}
	from, err := t.walk(parts[:len(parts)-1], false)
	if err != nil || from == nil {
		return nil
	}
	return from.children[parts[len(parts)-1]]
}
