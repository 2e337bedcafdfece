package image

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"banger/internal/host"
)

// The layout of ext4 is that of the kernel's Documentation/filesystems/ext4; names of fields are those of there.

const (
	blockSize      = 4096
	inodeSize      = 256
	inodeRoot      = 2
	superOffset    = 1024
	superMagic     = 0xef53
	descSize       = 32 // without the feature 64bit
	extentMagic    = 0xf30a
	extentsFlag    = 0x80000
	maxExtent      = 32768 // blocks
	extentsInInode = 4
	extentsInBlock = (blockSize - 12) / 12
	maxLinks       = 65000
	fastSymlink    = 60 // bytes that are less stand in the inode
	extraInode     = 32 // i_extra_isize
	xattrMagic     = 0xea020000
)

// journalMiB is enough for a disk of one machine, and little to be written anew by each.
const journalMiB = "16"

// ext4Features are fixed, whatever /etc/mke2fs.conf says: what follows knows no checksums and no groups that are not initialised.
// resize_inode lets the guest's kernel grow the file system while it is mounted.
const ext4Features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize"

// makeExt4 makes a file of size bytes with an empty ext4 that has room for so many inodes. It runs mke2fs(8); the file is sparse.
func makeExt4(ctx context.Context, name string, size int64, inodes int) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	_, err = host.Run(ctx, "", "mke2fs", "-q", "-F", "-t", "ext4", "-O", ext4Features, "-b", strconv.Itoa(blockSize), "-I", strconv.Itoa(inodeSize), "-m", "1",
		"-N", strconv.Itoa(inodes), "-J", "size="+journalMiB, "-E", "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=1,nodiscard", "-L", "root", name)
	return err
}

// ext4 writes files into a fresh file system of makeExt4's. Nothing that a file is called or holds touches the host: that is
// why there is no directory that it is unpacked into. After an error the file is of no use.
type ext4 struct {
	f              *os.File
	room           host.Room // for contents; what is beside them is little
	super          []byte
	descs          []byte
	blocksPerGroup uint32
	inodesPerGroup uint32
	blocks, inodes uint32
	free           []byte // the bitmaps of all groups' blocks, one after the other
	nextBlock      uint32
	nextInode      uint32
	dirs           []uint16 // directories made, by group
	used           []uint32 // blocks taken, by group
	buf            []byte
}

// run of blocks.
type run32 struct{ start, count uint32 }

func openExt4(name string) (*ext4, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	x := &ext4{f: f, room: host.Room{File: f}, super: make([]byte, 1024), buf: make([]byte, 64*blockSize)}
	if err := x.read(); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot read the empty file system: %w", err)
	}
	return x, nil
}

func (x *ext4) read() error {
	if _, err := x.f.ReadAt(x.super, superOffset); err != nil {
		return err
	}
	le := binary.LittleEndian
	if le.Uint16(x.super[56:]) != superMagic || le.Uint32(x.super[24:]) != 2 || le.Uint16(x.super[88:]) != inodeSize {
		return errors.New("not the ext4 that was asked for")
	}
	x.inodes, x.blocks = le.Uint32(x.super[0:]), le.Uint32(x.super[4:])
	x.blocksPerGroup, x.inodesPerGroup = le.Uint32(x.super[32:]), le.Uint32(x.super[40:])
	groups := (x.blocks + x.blocksPerGroup - 1) / x.blocksPerGroup
	x.descs = make([]byte, groups*descSize)
	if _, err := x.f.ReadAt(x.descs, blockSize); err != nil {
		return err
	}
	x.free = make([]byte, groups*blockSize)
	x.dirs, x.used = make([]uint16, groups), make([]uint32, groups)
	for g := range groups {
		if _, err := x.f.ReadAt(x.free[g*blockSize:(g+1)*blockSize], int64(x.desc(g, 0))*blockSize); err != nil {
			return err
		}
	}
	x.nextInode = le.Uint32(x.super[84:]) + 1 // the first that is not reserved is lost+found
	return nil
}

// desc gives a field of a group's descriptor: 0 the block of its blocks' bitmap, 4 of its inodes' bitmap, 8 of its inodes.
func (x *ext4) desc(group, field uint32) uint32 {
	return binary.LittleEndian.Uint32(x.descs[group*descSize+field:])
}

// take gives count free blocks as runs of at most maxExtent.
func (x *ext4) take(count uint32) ([]run32, error) {
	var runs []run32
	for ; count > 0; x.nextBlock++ {
		if x.nextBlock >= x.blocks {
			return nil, errors.New("the file system that was made for it is too small")
		}
		byte, bit := &x.free[x.nextBlock/8], uint8(1)<<(x.nextBlock%8)
		if *byte&bit != 0 {
			continue
		}
		*byte |= bit
		x.used[x.nextBlock/x.blocksPerGroup]++
		count--
		if n := len(runs); n > 0 && runs[n-1].start+runs[n-1].count == x.nextBlock && runs[n-1].count < maxExtent {
			runs[n-1].count++
		} else {
			runs = append(runs, run32{x.nextBlock, 1})
		}
	}
	return runs, nil
}

// inode gives a number to a file.
func (x *ext4) inode(dir bool) (uint32, error) {
	if x.nextInode > x.inodes {
		return 0, errors.New("the file system that was made for it has too few inodes")
	}
	n := x.nextInode
	x.nextInode++
	if dir {
		x.dirs[(n-1)/x.inodesPerGroup]++
	}
	return n, nil
}

// content writes size bytes from r to new blocks. Blocks of zeros, which a fresh file has anyway, take no room on the host.
func (x *ext4) content(r io.Reader, size int64) ([]run32, error) {
	runs, err := x.take(uint32((size + blockSize - 1) / blockSize))
	if err != nil {
		return nil, err
	}
	for _, run := range runs {
		at, left := int64(run.start)*blockSize, int64(run.count)*blockSize
		for left > 0 && size > 0 {
			p := x.buf[:min(int64(len(x.buf)), left, size)]
			if _, err := io.ReadFull(r, p); err != nil {
				return nil, unexpected(err)
			}
			if !host.Zeros(p) {
				if err := x.room.Take(int64(len(p))); err != nil {
					return nil, err
				}
				if _, err := x.f.WriteAt(p, at); err != nil {
					return nil, err
				}
			}
			n := int64(len(p))
			at, left, size = at+n, left-n, size-n
		}
	}
	return runs, nil
}

// unexpected tells an end that came too early from one that was waited for.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// writeInode writes a file's inode with its blocks.
func (x *ext4) writeInode(n *node, size int64, runs []run32, links int) error {
	le := binary.LittleEndian
	b := make([]byte, inodeSize)
	le.PutUint16(b[0:], n.mode)
	le.PutUint16(b[2:], uint16(n.uid))
	le.PutUint16(b[24:], uint16(n.gid))
	le.PutUint16(b[120:], uint16(n.uid>>16))
	le.PutUint16(b[122:], uint16(n.gid>>16))
	le.PutUint32(b[4:], uint32(size))
	le.PutUint32(b[108:], uint32(size>>32))
	le.PutUint16(b[128:], extraInode)
	seconds, extra := inodeTime(n.mtime)
	for _, at := range []int{8, 12, 16, 144} { // atime, ctime, mtime, crtime
		le.PutUint32(b[at:], seconds)
	}
	for _, at := range []int{132, 136, 140, 148} {
		le.PutUint32(b[at:], extra)
	}
	le.PutUint16(b[26:], uint16(links))
	if n.mode&modeType == modeLink && size < fastSymlink {
		copy(b[40:100], n.link)
	} else if n.mode&modeType != modeFIFO {
		le.PutUint32(b[32:], extentsFlag)
		more, err := x.extents(b[40:100], runs)
		if err != nil {
			return err
		}
		runs = append(runs[:len(runs):len(runs)], more...)
	}
	if len(n.xattrs) > 0 {
		block, err := x.xattrBlock(n.xattrs)
		if err != nil {
			return err
		}
		le.PutUint32(b[104:], block.start)
		runs = append(runs[:len(runs):len(runs)], block)
	}
	var blocks uint64
	for _, r := range runs {
		blocks += uint64(r.count)
	}
	le.PutUint32(b[28:], uint32(blocks*(blockSize/512)))
	le.PutUint16(b[116:], uint16(blocks*(blockSize/512)>>32))
	_, err := x.f.WriteAt(b, x.inodeOffset(n.inode))
	return err
}

func (x *ext4) inodeOffset(inode uint32) int64 {
	group, index := (inode-1)/x.inodesPerGroup, (inode-1)%x.inodesPerGroup
	return int64(x.desc(group, 8))*blockSize + int64(index)*inodeSize
}

// inodeTime gives the seconds and, as ext4 keeps them, the two more bits of the seconds and the nanoseconds.
func inodeTime(t time.Time) (seconds, extra uint32) {
	s := max(-1<<31, min(t.Unix(), 1<<34-1-1<<31))
	return uint32(s), uint32((s-int64(int32(s)))>>32)&3 | uint32(t.Nanosecond())<<2
}

// extents writes the tree of extents into an inode's i_block, and gives the blocks that its leaves took.
func (x *ext4) extents(b []byte, runs []run32) ([]run32, error) {
	if len(runs) <= extentsInInode {
		extentNode(b, extentsInInode, 0)
		logical := uint32(0)
		for i, r := range runs {
			putExtent(b, i, logical, r)
			logical += r.count
		}
		return nil, nil
	}
	leaves := (len(runs) + extentsInBlock - 1) / extentsInBlock
	if leaves > extentsInInode {
		return nil, errors.New("a file is in too many pieces")
	}
	extentNode(b, extentsInInode, 1)
	var more []run32
	logical := uint32(0)
	for i := range leaves {
		block, err := x.take(1)
		if err != nil {
			return nil, err
		}
		more = append(more, block[0])
		entry := b[12+12*i:]
		binary.LittleEndian.PutUint32(entry, logical)
		binary.LittleEndian.PutUint32(entry[4:], block[0].start)
		binary.LittleEndian.PutUint16(b[2:], uint16(i+1))
		leaf := make([]byte, blockSize)
		extentNode(leaf, extentsInBlock, 0)
		for j, r := range runs[i*extentsInBlock : min(len(runs), (i+1)*extentsInBlock)] {
			putExtent(leaf, j, logical, r)
			logical += r.count
		}
		if _, err := x.f.WriteAt(leaf, int64(block[0].start)*blockSize); err != nil {
			return nil, err
		}
	}
	return more, nil
}

func extentNode(b []byte, most, depth uint16) {
	binary.LittleEndian.PutUint16(b[0:], extentMagic)
	binary.LittleEndian.PutUint16(b[4:], most)
	binary.LittleEndian.PutUint16(b[6:], depth)
}

func putExtent(b []byte, i int, logical uint32, r run32) {
	le := binary.LittleEndian
	le.PutUint16(b[2:], uint16(i+1))
	e := b[12+12*i:]
	le.PutUint32(e, logical)
	le.PutUint16(e[4:], uint16(r.count)) // 32768 is the most for initialised extents
	le.PutUint32(e[8:], r.start)
}

// xattrPrefixes are how ext4 writes the beginnings of names.
var xattrPrefixes = []struct {
	prefix string
	index  byte
}{{"user.", 1}, {"trusted.", 4}, {"security.", 6}}

// xattrSupported reports whether an attribute can be kept: access lists are in another form on disk and are left out.
func xattrSupported(name string) bool {
	return slices.ContainsFunc(xattrPrefixes, func(p struct {
		prefix string
		index  byte
	}) bool {
		return strings.HasPrefix(name, p.prefix) && len(name) > len(p.prefix) && len(name) <= 255
	})
}

// xattrBlock writes the attributes of a file to a block.
func (x *ext4) xattrBlock(xattrs map[string]string) (run32, error) {
	type attr struct {
		index       byte
		name, value string
	}
	var attrs []attr
	for name, value := range xattrs {
		for _, p := range xattrPrefixes {
			if rest, ok := strings.CutPrefix(name, p.prefix); ok {
				attrs = append(attrs, attr{p.index, rest, value})
			}
		}
	}
	slices.SortFunc(attrs, func(a, b attr) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), strings.Compare(a.name, b.name))
	})
	le := binary.LittleEndian
	b := make([]byte, blockSize)
	le.PutUint32(b[0:], xattrMagic)
	le.PutUint32(b[4:], 1)
	le.PutUint32(b[8:], 1)
	at, end, all := 32, blockSize, uint32(0)
	for _, a := range attrs {
		end -= (len(a.value) + 3) &^ 3
		next := at + 16 + (len(a.name)+3)&^3
		if next+4 > end {
			return run32{}, errors.New("extended attributes of more than 4096 bytes")
		}
		copy(b[end:], a.value)
		e := b[at:]
		e[0], e[1] = byte(len(a.name)), a.index
		le.PutUint16(e[2:], uint16(end))
		le.PutUint32(e[8:], uint32(len(a.value)))
		copy(e[16:], a.name)
		hash := xattrHash(a.name, b[end:end+(len(a.value)+3)&^3])
		le.PutUint32(e[12:], hash)
		all = all<<16 ^ all>>16 ^ hash
		at = next
	}
	le.PutUint32(b[12:], all)
	block, err := x.take(1)
	if err != nil {
		return run32{}, err
	}
	_, err = x.f.WriteAt(b, int64(block[0].start)*blockSize)
	return block[0], err
}

// xattrHash is ext4_xattr_hash_entry of fs/ext4/xattr.c; value is padded with zeros to words.
func xattrHash(name string, value []byte) uint32 {
	var h uint32
	for i := range len(name) {
		h = h<<5 ^ h>>27 ^ uint32(name[i])
	}
	for ; len(value) > 0; value = value[4:] {
		h = h<<16 ^ h>>16 ^ binary.LittleEndian.Uint32(value)
	}
	return h
}

// directory writes a directory's names and its inode. The root's first block is there already.
func (x *ext4) directory(n, parent *node) error {
	names := make([]string, 0, len(n.children))
	subdirs := 0
	for name, c := range n.children {
		names = append(names, name)
		if c.mode&modeType == modeDir {
			subdirs++
		}
	}
	slices.Sort(names)
	var text []byte
	last := 0 // where the last entry begins
	add := func(inode uint32, name string, kind byte) {
		length := 8 + (len(name)+3)&^3
		room := blockSize - len(text)%blockSize
		if len(text) > 0 && room < length || room == blockSize && len(text) > 0 {
			// The last entry of a block reaches to its end.
			end := (len(text) + blockSize - 1) / blockSize * blockSize
			binary.LittleEndian.PutUint16(text[last+4:], uint16(end-last))
			text = append(text, make([]byte, end-len(text))...)
		}
		last = len(text)
		text = append(text, make([]byte, length)...)
		e := text[last:]
		binary.LittleEndian.PutUint32(e, inode)
		binary.LittleEndian.PutUint16(e[4:], uint16(length))
		e[6], e[7] = byte(len(name)), kind
		copy(e[8:], name)
	}
	add(n.inode, ".", 2)
	add(parent.inode, "..", 2)
	if n.inode == inodeRoot {
		add(binary.LittleEndian.Uint32(x.super[84:]), lostFound, 2)
		subdirs++
	}
	for _, name := range names {
		c := n.children[name]
		add(c.inode, name, direntTypes[c.mode&modeType])
	}
	end := (len(text) + blockSize - 1) / blockSize * blockSize
	binary.LittleEndian.PutUint16(text[last+4:], uint16(end-last))
	text = append(text, make([]byte, end-len(text))...)

	var runs []run32
	if n.inode == inodeRoot {
		old := make([]byte, inodeSize)
		if _, err := x.f.ReadAt(old, x.inodeOffset(inodeRoot)); err != nil {
			return err
		}
		runs = []run32{{binary.LittleEndian.Uint32(old[40+12+8:]), 1}}
	}
	more, err := x.take(uint32(end/blockSize - len(runs)))
	if err != nil {
		return err
	}
	runs = append(runs, more...)
	at := 0
	for _, r := range runs {
		n := int(r.count) * blockSize
		if _, err := x.f.WriteAt(text[at:at+n], int64(r.start)*blockSize); err != nil {
			return err
		}
		at += n
	}
	links := 2 + subdirs
	if links > maxLinks {
		links = 1 // dir_nlink: not counted
	}
	return x.writeInode(n, int64(end), runs, links)
}

// direntTypes are the types of names in directories.
var direntTypes = map[uint16]byte{modeReg: 1, modeDir: 2, modeFIFO: 5, modeLink: 7}

// close writes the bitmaps and the counts, and syncs the file.
func (x *ext4) close() error {
	le := binary.LittleEndian
	var blocks uint32
	for g := range uint32(len(x.dirs)) {
		if _, err := x.f.WriteAt(x.free[g*blockSize:(g+1)*blockSize], int64(x.desc(g, 0))*blockSize); err != nil {
			return err
		}
		taken, err := x.inodeBitmap(g)
		if err != nil {
			return err
		}
		d := x.descs[g*descSize:]
		le.PutUint16(d[12:], le.Uint16(d[12:])-uint16(x.used[g]))
		le.PutUint16(d[14:], le.Uint16(d[14:])-uint16(taken))
		le.PutUint16(d[16:], le.Uint16(d[16:])+x.dirs[g])
		blocks += x.used[g]
	}
	made := x.nextInode - le.Uint32(x.super[84:]) - 1
	le.PutUint32(x.super[12:], le.Uint32(x.super[12:])-blocks)
	le.PutUint32(x.super[16:], le.Uint32(x.super[16:])-made)
	for _, w := range []struct {
		b  []byte
		at int64
	}{{x.descs, blockSize}, {x.super, superOffset}} {
		if _, err := x.f.WriteAt(w.b, w.at); err != nil {
			return err
		}
	}
	return host.CloseSynced(x.f)
}

// inodeBitmap marks the inodes of a group that were made, and gives their number.
func (x *ext4) inodeBitmap(group uint32) (uint32, error) {
	first := max(group*x.inodesPerGroup, binary.LittleEndian.Uint32(x.super[84:])) // numbers from 0
	end := min((group+1)*x.inodesPerGroup, x.nextInode-1)
	if first >= end {
		return 0, nil
	}
	b := make([]byte, blockSize)
	at := int64(x.desc(group, 4)) * blockSize
	if _, err := x.f.ReadAt(b, at); err != nil {
		return 0, err
	}
	for i := first; i < end; i++ {
		b[i%x.inodesPerGroup/8] |= 1 << (i % x.inodesPerGroup % 8)
	}
	_, err := x.f.WriteAt(b, at)
	return end - first, err
}

// abandon closes the file after an error.
func (x *ext4) abandon() { x.f.Close() }

// number gives inodes to all files below n, which has one.
func (x *ext4) number(n *node) error {
	for _, name := range sortedNames(n.children) {
		c := n.children[name]
		if c.inode != 0 {
			continue // another name of a file
		}
		var err error
		if c.inode, err = x.inode(c.mode&modeType == modeDir); err != nil {
			return err
		}
		if c.mode&modeType == modeDir {
			if err := x.number(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// skeleton writes all that has no content of its own: directories, symbolic links, FIFOs, empty files.
func (x *ext4) skeleton(n, parent *node, done map[*node]bool) error {
	for _, c := range n.children {
		var err error
		switch kind := c.mode & modeType; {
		case kind == modeDir:
			err = x.skeleton(c, n, done)
		case c.links > 1 && done[c]:
		case kind == modeLink:
			var runs []run32
			if size := int64(len(c.link)); size >= fastSymlink {
				if runs, err = x.content(strings.NewReader(c.link), size); err != nil {
					return err
				}
			}
			err = x.writeInode(c, int64(len(c.link)), runs, c.links)
		case c.size == 0:
			err = x.writeInode(c, 0, nil, c.links)
		}
		if err != nil {
			return err
		}
		if c.links > 1 {
			done[c] = true
		}
	}
	return x.directory(n, parent)
}

func sortedNames(children map[string]*node) []string {
	names := make([]string, 0, len(children))
	for name := range children {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// lostFound is the directory that e2fsck(8) wants, and mke2fs makes.
const lostFound = "lost+found"

// base is path.Base, for messages of few bytes.
func base(name string) string { return fmt.Sprintf("%.80q", path.Base(name)) }
