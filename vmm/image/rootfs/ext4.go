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

// The layout of ext4 and the names of its fields are those of the kernel's
// Documentation/filesystems/ext4.

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
	fastSymlink    = 60 // shorter targets are stored in the inode
	extraInode     = 32 // i_extra_isize
	xattrMagic     = 0xea020000
)

// journalMiB is enough for the disk of one machine, and small enough for each to write its own
// copy.
const journalMiB = "16"

// ext4Features are fixed, whatever /etc/mke2fs.conf says: this package knows no checksums and no
// uninitialised groups. With resize_inode the guest's kernel can grow the mounted file system.
const ext4Features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize"

// makeExt4 makes a sparse file of size bytes with an empty ext4. It runs mke2fs(8).
func makeExt4(ctx context.Context, name string, size int64, inodes int) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	_, err = host.Run(ctx, "", "mke2fs", "-q", "-F", "-t", "ext4", "-O", ext4Features,
		"-b", strconv.Itoa(blockSize), "-I", strconv.Itoa(inodeSize), "-m", "1",
		"-N", strconv.Itoa(inodes), "-J", "size="+journalMiB, "-L", "root",
		"-E", "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=1,nodiscard", name)
	return err
}

// ext4 writes files into the empty file system of makeExt4. Names and contents of the files never
// become names and contents of the host's own file system. After an error the file system is
// incomplete.
type ext4 struct {
	f              *os.File
	room           host.Room // for contents; the rest is small
	super          []byte
	descs          []byte
	blocksPerGroup uint32
	inodesPerGroup uint32
	blocks, inodes uint32
	free           []byte // the block bitmaps of all groups, in turn
	nextBlock      uint32
	nextInode      uint32
	dirs           []uint16 // new directories by group
	used           []uint32 // new blocks by group
	buf            []byte
}

// run32 is a run of blocks.
type run32 struct{ start, count uint32 }

// precedes reports whether a block can be added to the run.
func (r run32) precedes(block uint32) bool {
	return r.start+r.count == block && r.count < maxExtent
}

func openExt4(name string) (*ext4, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	x := &ext4{f: f, room: host.Room{File: f}}
	x.super, x.buf = make([]byte, 1024), make([]byte, 64*blockSize)
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
	if le.Uint16(x.super[56:]) != superMagic || le.Uint32(x.super[24:]) != 2 ||
		le.Uint16(x.super[88:]) != inodeSize {
		return errors.New("mke2fs has made another file system than asked")
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
		bitmap := x.free[g*blockSize : (g+1)*blockSize]
		if _, err := x.f.ReadAt(bitmap, int64(x.desc(g, 0))*blockSize); err != nil {
			return err
		}
	}
	x.nextInode = le.Uint32(x.super[84:]) + 1 // lost+found has the first unreserved one
	return nil
}

// desc returns a field of a group's descriptor: the block of its block bitmap (0), of its inode
// bitmap (4), or of its inodes (8).
func (x *ext4) desc(group, field uint32) uint32 {
	return binary.LittleEndian.Uint32(x.descs[group*descSize+field:])
}

// take allocates count free blocks and returns them as runs of at most maxExtent.
func (x *ext4) take(count uint32) ([]run32, error) {
	var runs []run32
	for ; count > 0; x.nextBlock++ {
		if x.nextBlock >= x.blocks {
			return nil, errors.New("its files need a larger file system")
		}
		octet, bit := &x.free[x.nextBlock/8], uint8(1)<<(x.nextBlock%8)
		if *octet&bit != 0 {
			continue
		}
		*octet |= bit
		x.used[x.nextBlock/x.blocksPerGroup]++
		count--
		if n := len(runs); n > 0 && runs[n-1].precedes(x.nextBlock) {
			runs[n-1].count++
		} else {
			runs = append(runs, run32{x.nextBlock, 1})
		}
	}
	return runs, nil
}

// inode returns a new inode's number.
func (x *ext4) inode(dir bool) (uint32, error) {
	if x.nextInode > x.inodes {
		return 0, errors.New("its files need more inodes")
	}
	n := x.nextInode
	x.nextInode++
	if dir {
		x.dirs[(n-1)/x.inodesPerGroup]++
	}
	return n, nil
}

// content writes size bytes from r to new blocks. It skips blocks of zeros, which stay holes of the
// file.
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

// unexpected returns the error of an end that is too early.
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
		bitmap := x.free[g*blockSize : (g+1)*blockSize]
		if _, err := x.f.WriteAt(bitmap, int64(x.desc(g, 0))*blockSize); err != nil {
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

// inodeBitmap marks the new inodes of a group, and returns how many there are.
func (x *ext4) inodeBitmap(group uint32) (uint32, error) {
	reserved := binary.LittleEndian.Uint32(x.super[84:])
	first := max(group*x.inodesPerGroup, reserved) // inodes count from 1, this from 0
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
