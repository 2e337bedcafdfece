package rootfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

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
