package boot

import (
	"bytes"
	"sort"
	"time"

	"github.com/cavaliergopher/cpio"
)

// epoch is the time of every file in an initramfs: the same input yields the same bytes.
var epoch = time.Unix(0, 0)

// entry is one file of an initramfs.
type entry struct {
	name         string // without a leading slash
	mode         cpio.FileMode
	data         []byte // content, or the target of a symbolic link
	major, minor uint32 // of a device node
}

func dirEntry(name string, perm cpio.FileMode) entry {
	return entry{name: name, mode: cpio.TypeDir | perm}
}

func fileEntry(name string, perm cpio.FileMode, data []byte) entry {
	return entry{name: name, mode: cpio.TypeReg | perm, data: data}
}

func linkEntry(name, target string) entry {
	return entry{name: name, mode: cpio.TypeSymlink | 0o777, data: []byte(target)}
}

func deviceEntry(name string, perm cpio.FileMode, major, minor uint32) entry {
	return entry{name: name, mode: cpio.TypeChar | perm, major: major, minor: minor}
}

// Offsets of the device numbers in the header of a newc archive (cpio(5), "New ASCII Format").
const (
	newcRdevMajor = 78
	newcRdevMinor = 86
)

// packInitramfs returns entries as a newc cpio archive, sorted by name and owned by root.
func packInitramfs(entries []entry) ([]byte, error) {
	entries = append([]entry(nil), entries...)
	// A directory sorts before its entries: "a" < "a/b".
	sort.Slice(entries, func(i, j int) bool { return entries[i].name < entries[j].name })
	var buf bytes.Buffer
	w := cpio.NewWriter(&buf)
	for i, e := range entries {
		h := &cpio.Header{
			Name:    e.name,
			Mode:    e.mode,
			Links:   1,
			ModTime: epoch,
			Inode:   int64(i + 1),
			Size:    int64(len(e.data)),
		}
		if e.mode.IsDir() {
			h.Links = 2
		}
		if err := w.Flush(); err != nil { // the padding of the previous entry
			return nil, err
		}
		start := buf.Len()
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if e.mode&^cpio.ModePerm == cpio.TypeChar {
			// The library writes 0 for the numbers of a device.
			head := buf.Bytes()[start:]
			putHex(head[newcRdevMajor:], e.major)
			putHex(head[newcRdevMinor:], e.minor)
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// putHex writes v as eight hexadecimal digits.
func putHex(b []byte, v uint32) {
	const digits = "0123456789abcdef"
	for i := 7; i >= 0; i-- {
		b[i] = digits[v&15]
		v >>= 4
	}
}
