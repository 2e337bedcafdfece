package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A root disk has room for new files of the guest, and inodes for them. It is sparse: free space
// occupies nothing on the host.
const (
	leastDisk   = 4 << 30
	freeSpace   = 2 << 30
	spareInodes = 128 << 10
)

// Limits bound the files of an image, those of all layers together.
type Limits struct {
	Bytes int64
	Files int
}

// MaxDisk returns the length of the longest root disk within the limits, in bytes.
func (l Limits) MaxDisk() int64 {
	return max(leastDisk, (l.Bytes+int64(l.Files)*2*blockSize)*17/16+freeSpace)
}

// Root is a root file system whose layers have been read once. It holds their names, not their
// contents.
type Root struct {
	tree   *tree
	layers []*Layer
	limits Limits
	most   int64 // bytes of one layer's tar
}

// Read reads the names of all layers, the lowest first. progress goes from 0 to 1. The error of a
// layer with another digest is a DamagedError.
func Read(ctx context.Context, layers []*Layer, limits Limits,
	progress func(float64)) (*Root, error) {
	r := &Root{tree: newTree(limits), layers: layers, limits: limits}
	r.most = limits.Bytes + int64(limits.Files)*overhead
	err := r.each(ctx, progress, func(i int, s *stream) error {
		r.tree.layer = i
		for r.tree.index = 0; ; r.tree.index++ {
			h, err := s.tar.Next()
			if err == io.EOF {
				return nil
			}
			if err == nil {
				err = r.tree.add(h)
			}
			if err != nil {
				return err
			}
		}
	})
	return r, err
}

// each reads the layers one after the other.
func (r *Root) each(ctx context.Context, progress func(float64),
	f func(i int, s *stream) error) error {
	var total, done int64
	for _, l := range r.layers {
		total += l.Size
	}
	read := func(n int) {
		if done += int64(n); total > 0 {
			progress(float64(done) / float64(total))
		}
	}
	for i, l := range r.layers {
		if err := r.one(ctx, l, read, func(s *stream) error { return f(i, s) }); err != nil {
			damaged := errors.Is(err, ErrDamaged)
			if len(r.layers) > 1 {
				err = fmt.Errorf("layer %d of %d: %w", i+1, len(r.layers), err)
			}
			if damaged {
				err = &DamagedError{i, err}
			}
			return err
		}
	}
	return nil
}

// one reads a layer and checks its digests.
func (r *Root) one(ctx context.Context, l *Layer, read func(int), f func(*stream) error) error {
	s, err := openLayer(ctx, l, r.most, read)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := errors.Join(f(s), ctx.Err()); err != nil {
		return err
	}
	return s.end()
}

// Write makes the root disk, a new file. The contents of files that are kept are complete when it
// returns. It runs mke2fs.
func (r *Root) Write(ctx context.Context, path string, progress func(float64)) error {
	inodes, blocks := r.tree.measure()
	size := max(leastDisk, blocks*blockSize*17/16+freeSpace)
	if err := makeExt4(ctx, path, size, inodes+spareInodes); err != nil {
		return fmt.Errorf("cannot make its file system: %w", err)
	}
	x, err := openExt4(path)
	if err != nil {
		return err
	}
	if err := r.fill(ctx, x, progress); err != nil {
		x.abandon()
		return err
	}
	return x.close()
}

func (r *Root) fill(ctx context.Context, x *ext4, progress func(float64)) error {
	if err := x.number(r.tree.root); err != nil {
		return err
	}
	if err := x.skeleton(r.tree.root, r.tree.root, map[*node]bool{}); err != nil {
		return err
	}
	contents := r.contents()
	return r.each(ctx, progress, func(i int, s *stream) error {
		left := contents[i]
		for index := 0; ; index++ {
			h, err := s.tar.Next()
			if err == io.EOF && len(left) == 0 {
				return nil
			}
			if err != nil {
				return unexpected(err)
			}
			if len(left) == 0 || left[0].index != index {
				continue
			}
			if err := x.file(left[0], h, s.tar); err != nil {
				return err
			}
			left = left[1:]
		}
	})
}

// file writes the content of a regular file.
func (x *ext4) file(n *node, h *tar.Header, r io.Reader) error {
	if h.Size != n.size {
		return errors.New("it was changed while it was read")
	}
	if n.keep != nil && n.size <= keepLimit {
		b := make([]byte, n.size)
		if _, err := io.ReadFull(r, b); err != nil {
			return unexpected(err)
		}
		*n.keep, r = b, bytes.NewReader(b)
	}
	runs, err := x.content(r, n.size)
	if err != nil {
		return err
	}
	return x.writeInode(n, n.size, runs, n.links)
}

// contents returns the files with contents by layer, in the order of the layer's entries.
func (r *Root) contents() [][]*node {
	lists := make([][]*node, len(r.layers))
	var walk func(n *node)
	seen := map[*node]bool{}
	walk = func(n *node) {
		for _, c := range n.children {
			if c.children != nil {
				walk(c)
			} else if c.mode&modeType == modeReg && c.size > 0 && !seen[c] {
				if c.links > 1 {
					seen[c] = true
				}
				lists[c.layer] = append(lists[c.layer], c)
			}
		}
	}
	walk(r.tree.root)
	for _, l := range lists {
		slices.SortFunc(l, func(a, b *node) int { return a.index - b.index })
	}
	return lists
}

// MakeVolumes makes the directories of an image's volumes that are in no layer, as root's with the
// mode 0755. It follows symbolic links, and makes what they lead to where that is nothing.
func (r *Root) MakeVolumes(paths []string) error {
	for _, path := range paths {
		if path == "/tmp" || path == "/run" {
			continue // the agent makes them, /tmp with the mode 1777
		}
		parts, err := split(path)
		if err == nil {
			_, err = r.tree.dir(parts)
		}
		if err != nil {
			return fmt.Errorf("cannot make its volume %.200q: %w", path, err)
		}
	}
	return nil
}

// HasInit reports whether the root has an init of its own.
func (r *Root) HasInit() bool {
	for _, name := range []string{"/sbin/init", "/lib/systemd/systemd"} {
		n := r.tree.follow(name)
		if n != nil && n.mode&modeType == modeReg && n.mode&0o111 != 0 {
			return true
		}
	}
	return false
}

// IsInit reports whether a program's path has the name of an init.
func IsInit(program string) bool {
	return strings.HasSuffix(program, "/init") || strings.HasSuffix(program, "/systemd")
}

// Files returns the sorted paths of the regular files in a directory and in those below it, from
// that directory on. It returns nil if there is no such directory.
func (r *Root) Files(dir string) []string {
	n := r.tree.follow(dir)
	if n == nil || n.children == nil {
		return nil
	}
	names := []string{}
	var walk func(n *node, prefix string)
	walk = func(n *node, prefix string) {
		for name, c := range n.children {
			if c.children != nil {
				walk(c, prefix+name+"/")
			} else if c.mode&modeType == modeReg {
				names = append(names, prefix+name)
			}
		}
	}
	walk(n, "")
	slices.Sort(names)
	return names
}

// keepLimit bounds a file that is kept in memory, in bytes.
const keepLimit = 256 << 20

// Keep returns where the content of a regular file will be after Write. It stays empty if there is
// no such file or if the file is too long.
func (r *Root) Keep(path string) *[]byte {
	content := new([]byte)
	if n := r.tree.follow(path); n != nil {
		n.keep = content
	}
	return content
}
