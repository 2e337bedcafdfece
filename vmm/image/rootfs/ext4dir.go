package rootfs

import (
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"
)

// number assigns inodes to all files below n.
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

// skeleton writes the files without contents: directories, symbolic links, FIFOs, empty files.
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

// directory writes a directory's names and its inode. The root has its first block already.
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
	last := 0 // the offset of the last entry
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

// direntTypes maps file types to those of directory entries.
var direntTypes = map[uint16]byte{modeReg: 1, modeDir: 2, modeFIFO: 5, modeLink: 7}

// lostFound is the directory that e2fsck(8) needs and mke2fs makes.
const lostFound = "lost+found"

// base returns the quoted path.Base, shortened for messages.
func base(name string) string { return fmt.Sprintf("%.80q", path.Base(name)) }
