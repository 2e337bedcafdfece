package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// TailKeep is what trimming leaves of a console or a log, bytes; TailMax is
// the growth beyond which they are trimmed.
const (
	TailKeep = 64 << 10
	TailMax  = 1 << 20
)

// TrimHead frees the blocks of f before its last keep bytes. The file's size
// and the offsets of its writers stay as they are, so that a VMM that appends
// to it never notices (fallocate(2), FALLOC_FL_PUNCH_HOLE).
func TrimHead(f *os.File, keep int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	end := (info.Size() - keep) &^ 4095
	if end <= 0 {
		return nil
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, end)
	if err != nil {
		return fmt.Errorf("cannot trim %s: %w", f.Name(), err)
	}
	return nil
}

// Tail is a file that grows at its end and is trimmed at its head. Offsets
// count from its base, by default the first byte that was kept when it was opened.
type Tail struct {
	f    *os.File // nil if the file does not exist
	base int64
}

// FirstKept tells OpenTail and TailSize to find the base.
const FirstKept = -1

// OpenTail opens the file for reading from base; one that does not exist reads as empty.
// The caller closes it.
func OpenTail(path string, base int64) (*Tail, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Tail{base: max(base, 0)}, nil
	}
	if err != nil {
		return nil, err
	}
	if base < 0 {
		if base, err = firstKept(f, 0); err != nil {
			f.Close()
			return nil, err
		}
	}
	return &Tail{f: f, base: base}, nil
}

// TailSize is how many bytes there are to read now from base on, without opening the file where it was never trimmed.
func TailSize(path string, base int64) int64 {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0
	}
	if base < 0 && st.Blocks*512 >= st.Size {
		base = 0 // no hole
	}
	if base >= 0 {
		return max(0, st.Size-base)
	}
	t, err := OpenTail(path, FirstKept)
	if err != nil {
		return 0
	}
	defer t.Close()
	return max(0, st.Size-t.base)
}

// firstKept finds where data begins at or after from: there, or after the hole at the next line.
func firstKept(f *os.File, from int64) (int64, error) {
	at, err := unix.Seek(int(f.Fd()), from, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) || at == from {
		return from, nil // at the end, or not trimmed here
	}
	if err != nil {
		return 0, err
	}
	head := make([]byte, 4096)
	n, err := f.ReadAt(head, at)
	if err != nil && err != io.EOF {
		return 0, err
	}
	if i := bytes.IndexByte(head[:n], '\n'); i >= 0 {
		at += int64(i) + 1
	}
	return at, nil
}

// Kept gives off, or, where that was trimmed meanwhile, the offset of the first line after it that was not.
func (t *Tail) Kept(off int64) (int64, error) {
	if t.f == nil {
		return off, nil
	}
	at, err := firstKept(t.f, t.base+off)
	return at - t.base, err
}

// ReadAt reads as io.ReaderAt does; what was trimmed reads as zeros.
func (t *Tail) ReadAt(p []byte, off int64) (int, error) {
	if t.f == nil {
		return 0, io.EOF
	}
	return t.f.ReadAt(p, t.base+off)
}

// Base is the place in the file that offsets count from.
func (t *Tail) Base() int64 { return t.base }

// Close closes the file.
func (t *Tail) Close() error {
	if t.f == nil {
		return nil
	}
	return t.f.Close()
}
