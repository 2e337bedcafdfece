package boot

import (
	"encoding/binary"
	"sort"
)

// isoBlock is the size of a logical block of an ISO 9660 disk, in bytes.
const isoBlock = 2048

// The parts of a disk by their blocks. The first sixteen are the system's (ECMA-119, 6.2.1).
const (
	isoVolume = 16 + iota
	isoEnd
	isoPathsL
	isoPathsM
	isoRoot
	isoFiles
)

// isoFile is a file of a disk's only directory.
type isoFile struct {
	name string
	data []byte
}

// packISO returns an ISO 9660 disk (ECMA-119) with files in its only directory. NoCloud needs names
// in lower case with hyphens, which the standard forbids and Linux reads. The directory must fit
// into one block, which holds forty names of that length.
func packISO(volume string, files []isoFile) []byte {
	files = append([]isoFile(nil), files...)
	sort.Slice(files, func(i, j int) bool { return files[i].name < files[j].name })
	root := isoRecord("\x00", isoRoot, isoBlock, true)
	dir := append(root, isoRecord("\x01", isoRoot, isoBlock, true)...)
	disk := make([]byte, isoFiles*isoBlock)
	for _, f := range files {
		dir = append(dir, isoRecord(f.name+";1", len(disk)/isoBlock, len(f.data), false)...)
		disk = append(disk, f.data...)
		if over := len(disk) % isoBlock; over != 0 {
			disk = append(disk, make([]byte, isoBlock-over)...)
		}
	}
	copy(disk[isoRoot*isoBlock:(isoRoot+1)*isoBlock], dir)

	// Primary volume descriptor, 8.4; its text is padded with spaces.
	d := disk[isoVolume*isoBlock : isoEnd*isoBlock]
	copy(d, "\x01CD001\x01")
	for _, text := range [][2]int{{8, 72}, {190, 813}} {
		for i := text[0]; i < text[1]; i++ {
			d[i] = ' '
		}
	}
	copy(d[40:72], volume)
	bothOrders32(d[80:], len(disk)/isoBlock)
	bothOrders16(d[120:], 1) // of one volume
	bothOrders16(d[124:], 1) // this is the first
	bothOrders16(d[128:], isoBlock)
	// The path table, 9.4, has the root alone.
	paths := []byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	bothOrders32(d[132:], len(paths))
	binary.LittleEndian.PutUint32(d[140:], isoPathsL)
	binary.BigEndian.PutUint32(d[148:], isoPathsM)
	copy(d[156:], root)
	for _, at := range []int{813, 830, 847, 864} { // dates left out, 8.4.26.1
		copy(d[at:], "0000000000000000")
	}
	d[881] = 1 // structure version
	copy(disk[isoEnd*isoBlock:], "\xffCD001\x01")
	for _, t := range []struct {
		block int
		order binary.ByteOrder
	}{{isoPathsL, binary.LittleEndian}, {isoPathsM, binary.BigEndian}} {
		p := disk[t.block*isoBlock:]
		copy(p, paths)
		t.order.PutUint32(p[2:], isoRoot)
		t.order.PutUint16(p[6:], 1)
	}
	return disk
}

// isoRecord returns a directory record, 9.1. Its date is the epoch.
func isoRecord(name string, block, size int, dir bool) []byte {
	r := make([]byte, (33+len(name)+1)&^1)
	r[0] = byte(len(r))
	bothOrders32(r[2:], block)
	bothOrders32(r[10:], size)
	copy(r[18:], []byte{70, 1, 1})
	if dir {
		r[25] = 2
	}
	bothOrders16(r[28:], 1)
	r[32] = byte(len(name))
	copy(r[33:], name)
	return r
}

// bothOrders32 writes n in both byte orders, 7.3.3.
func bothOrders32(b []byte, n int) {
	binary.LittleEndian.PutUint32(b, uint32(n))
	binary.BigEndian.PutUint32(b[4:], uint32(n))
}

// bothOrders16 writes n in both byte orders, 7.2.3.
func bothOrders16(b []byte, n int) {
	binary.LittleEndian.PutUint16(b, uint16(n))
	binary.BigEndian.PutUint16(b[2:], uint16(n))
}
