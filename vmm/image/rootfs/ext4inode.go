package rootfs

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"time"
)

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

// inodeTime returns the seconds, and ext4's extra word with two more bits of the seconds and the
// nanoseconds.
func inodeTime(t time.Time) (seconds, extra uint32) {
	s := max(-1<<31, min(t.Unix(), 1<<34-1-1<<31))
	return uint32(s), uint32((s-int64(int32(s)))>>32)&3 | uint32(t.Nanosecond())<<2
}

// extents writes the tree of extents into an inode's i_block, and returns the blocks of its leaves.
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
	le.PutUint16(e[4:], uint16(r.count)) // at most 32768 if initialised
	le.PutUint32(e[8:], r.start)
}

// xattrPrefixes maps prefixes of attributes to their numbers in ext4.
var xattrPrefixes = []struct {
	prefix string
	index  byte
}{{"user.", 1}, {"trusted.", 4}, {"security.", 6}}

// xattrSupported reports whether an attribute is kept. Access lists are not: ext4 stores them in
// another form.
func xattrSupported(name string) bool {
	for _, p := range xattrPrefixes {
		if strings.HasPrefix(name, p.prefix) && len(name) > len(p.prefix) && len(name) <= 255 {
			return true
		}
	}
	return false
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
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)),
			strings.Compare(a.name, b.name))
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

// xattrHash is ext4_xattr_hash_entry of fs/ext4/xattr.c. The value is padded with zeros to words.
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
