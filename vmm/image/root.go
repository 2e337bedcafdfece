package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/host"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// rootName is the file of an image with its root file system, a raw disk without partitions.
const rootName = "root.img"

// A root disk has room for what a guest adds, and inodes for it. It is sparse: what is not used takes nothing on the host.
const (
	leastRoot   = 4 << 30
	freeRoot    = 2 << 30
	spareInodes = 128 << 10
)

// layer is a tar, perhaps compressed, that is read twice: for its names, and for its files.
type layer struct {
	open   func() (io.ReadCloser, error) // in the daemon a *piece
	size   int64                         // as stored, for the progress; 0 if it is not known
	digest string                        // of what is stored, "sha256:..."; empty if it is not known
	diffID string                        // of what that unpacks to; empty if it is not known

	damaged func() // called when it has not the digest it should have; may be nil
}

// errDamaged is for what does not have its digest.
var errDamaged = errors.New("damaged")

// damagedLayer is the error of a layer that has not its digest.
type damagedLayer struct {
	index int
	error
}

func (d *damagedLayer) Unwrap() error { return d.error }

// stream reads a layer's tar and checks its digests at the end.
type stream struct {
	tar    *tar.Reader
	stored io.ReadCloser
	plain  io.Reader
	checks []check
	close  func()
}

type check struct {
	what, want string
	hash       hash.Hash
}

// openLayer reads a layer from its beginning. most bounds what it unpacks to; read is told of each piece of what is stored.
func openLayer(ctx context.Context, l *layer, most int64, read func(n int)) (*stream, error) {
	f, err := l.open()
	if err != nil {
		return nil, err
	}
	s := &stream{stored: f, close: func() {}}
	stored := host.NewReader(ctx, f, read)
	if l.digest != "" {
		stored = s.check("layer", l.digest, stored)
	}
	b := bufio.NewReaderSize(stored, 256<<10)
	if s.plain, err = s.unpack(b); err != nil {
		s.stored.Close()
		return nil, err
	}
	// Some bytes of what is stored may unpack to gigabytes, so this end looks at ctx, too.
	s.plain = &limited{host.NewReader(ctx, s.plain, nil), most}
	if l.diffID != "" {
		s.plain = s.check("unpacked layer", l.diffID, s.plain)
	}
	s.tar = tar.NewReader(s.plain)
	// What is compressed ends after what it unpacks to; both are read to their ends for the digests.
	s.plain = io.MultiReader(s.plain, b)
	return s, nil
}

func (s *stream) check(what, want string, r io.Reader) io.Reader {
	c := check{what, want, sha256.New()}
	s.checks = append(s.checks, c)
	return io.TeeReader(r, c.hash)
}

// unpack finds out how the stream is compressed.
func (s *stream) unpack(b *bufio.Reader) (io.Reader, error) {
	magic, err := b.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("cannot unpack it: %w", err)
		}
		return z, nil
	case bytes.HasPrefix(magic, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, fmt.Errorf("cannot unpack it: %w", err)
		}
		s.close = z.Close
		return z, nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		return nil, errors.New("it is compressed with xz; only gzip and zstd are understood")
	case bytes.HasPrefix(magic, []byte("BZh")):
		return nil, errors.New("it is compressed with bzip2; only gzip and zstd are understood")
	}
	return b, nil
}

// end reads what is left and compares the digests.
func (s *stream) end() error {
	if _, err := io.Copy(io.Discard, s.plain); err != nil {
		return err
	}
	for _, c := range s.checks {
		if got := "sha256:" + hex.EncodeToString(c.hash.Sum(nil)); got != c.want {
			return fmt.Errorf("%s is %w: it has the digest %s, not %s", c.what, errDamaged, got, c.want)
		}
	}
	return nil
}

func (s *stream) Close() error {
	s.close()
	return s.stored.Close()
}

// limited is io.LimitReader that tells of more.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, errors.New("it unpacks to more than is allowed, see image_max_size")
	}
	return n, err
}

// rootfs is a root file system that was read once.
type rootfs struct {
	tree   *tree
	layers []*layer
	limits Limits
	most   int64 // bytes of one layer's tar
}

// scan reads the names of all layers, lowest first.
func scan(ctx context.Context, layers []*layer, limits Limits, progress func(float64)) (*rootfs, error) {
	r := &rootfs{tree: newTree(limits), layers: layers, limits: limits, most: limits.Bytes + int64(limits.Files)*overhead}
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
func (r *rootfs) each(ctx context.Context, progress func(float64), f func(i int, s *stream) error) error {
	var total, done int64
	for _, l := range r.layers {
		total += l.size
	}
	read := func(n int) {
		if done += int64(n); total > 0 {
			progress(float64(done) / float64(total))
		}
	}
	for i, l := range r.layers {
		s, err := openLayer(ctx, l, r.most, read)
		if err == nil {
			err = errors.Join(f(i, s), ctx.Err())
			if err == nil {
				err = s.end()
			}
			s.Close()
		}
		if err != nil {
			damaged := errors.Is(err, errDamaged)
			if len(r.layers) > 1 {
				err = fmt.Errorf("layer %d of %d: %w", i+1, len(r.layers), err)
			}
			if damaged {
				err = &damagedLayer{i, err}
			}
			return err
		}
	}
	return nil
}

// write makes the root disk in dir. Files whose node says so are kept in memory besides.
func (r *rootfs) write(ctx context.Context, dir string, progress func(float64)) error {
	name := filepath.Join(dir, rootName)
	inodes, blocks := r.tree.measure()
	size := max(leastRoot, blocks*blockSize*17/16+freeRoot)
	if err := makeExt4(ctx, name, size, inodes+spareInodes); err != nil {
		return fmt.Errorf("cannot make its file system: %w", err)
	}
	x, err := openExt4(name)
	if err != nil {
		return err
	}
	if err := r.fill(ctx, x, progress); err != nil {
		x.abandon()
		return err
	}
	return x.close()
}

func (r *rootfs) fill(ctx context.Context, x *ext4, progress func(float64)) error {
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

// contents are the files that have a content, by layer, in the order in which they come.
func (r *rootfs) contents() [][]*node {
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

// hasInit reports whether the root has an init of its own.
func (r *rootfs) hasInit() bool {
	for _, name := range []string{"/sbin/init", "/lib/systemd/systemd"} {
		if n := r.tree.follow(name); n != nil && n.mode&modeType == modeReg && n.mode&0o111 != 0 {
			return true
		}
	}
	return false
}

// isInit reports whether a program's path names an init, as a file called init or systemd mostly is.
func isInit(program string) bool {
	return strings.HasSuffix(program, "/init") || strings.HasSuffix(program, "/systemd")
}

// Files implements boot.Root.
func (r *rootfs) Files(dir string) []string {
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

// keepLimit bounds a file that is kept in memory.
const keepLimit = 256 << 20

// Keep implements boot.Root.
func (r *rootfs) Keep(path string) *[]byte {
	content := new([]byte)
	if n := r.tree.follow(path); n != nil {
		n.keep = content
	}
	return content
}
