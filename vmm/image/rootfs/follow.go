package rootfs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// split returns the names of a path in the root, which may begin with a slash.
func split(name string) ([]string, error) {
	if len(name) > maxPath {
		return nil, fmt.Errorf("a path of %d bytes, %d are allowed", len(name), maxPath)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, fmt.Errorf("a path with a NUL byte: %s", base(name))
	}
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || p == ".":
		case p == "..":
			return nil, fmt.Errorf("a path that leads out of the root: %.200q", name)
		case len(p) > maxName:
			return nil, fmt.Errorf("a name of %d bytes, %d are allowed, that begins %.40q",
				len(p), maxName, p)
		default:
			parts = append(parts, p)
		}
	}
	if len(parts) > maxDepth {
		return nil, fmt.Errorf("a path of %d directories, %d are allowed, that begins %.40q",
			len(parts), maxDepth, name)
	}
	return parts, nil
}

// dir returns a directory and makes it if it is missing. Symbolic links on the way lead where they
// would lead if this tree were the root.
func (t *tree) dir(parts []string) (*node, error) { return t.walk(parts, true) }

// walk follows parts from the root. It adds missing directories, or returns nil at the first.
func (t *tree) walk(parts []string, add bool) (*node, error) {
	way := []*node{t.root} // for ..
	rest := slices.Clone(parts)
	follows := 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		here := way[len(way)-1]
		switch name {
		case "", ".":
			continue
		case "..": // of a symbolic link; the root's parent is the root
			way = way[:max(1, len(way)-1)]
			continue
		}
		n := here.children[name]
		switch {
		case n == nil && !add:
			return nil, nil
		case n == nil:
			if len(name) > maxName || len(way) > maxDepth {
				return nil, errors.New("a symbolic link leads to a path that is too long")
			}
			if err := errors.Join(t.count(1, blockSize), t.countText(len(name))); err != nil {
				return nil, err
			}
			n = &node{mode: modeDir | 0o755, mtime: epoch, children: map[string]*node{},
				links: 1, layer: t.layer, index: -1}
			here.children[name] = n
			way = append(way, n)
		case n.children != nil:
			way = append(way, n)
		case n.mode&modeType == modeLink:
			if follows++; follows > maxFollow {
				return nil, fmt.Errorf("symbolic links lead in a circle: %s", base(name))
			}
			if strings.HasPrefix(n.link, "/") {
				way = way[:1]
			}
			rest = append(strings.Split(n.link, "/"), rest...)
			if len(rest) > maxPath {
				return nil, errors.New("symbolic links lead to a path that is too long")
			}
		case add:
			return nil, fmt.Errorf("a file is in the place of a directory: %s", base(name))
		default:
			return nil, nil
		}
	}
	return way[len(way)-1], nil
}

// follow returns the node at the end of a path, nil if there is none.
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
		for p := range strings.SplitSeq(n.link, "/") {
			switch p {
			case "", ".":
			case "..": // drops a name: right unless that name is a symbolic link
				parts = parts[:max(0, len(parts)-1)]
			default:
				parts = append(slices.Clip(parts), p)
			}
		}
	}
	return nil
}
