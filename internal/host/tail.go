package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// TailKeep is how many bytes trimming leaves of a console or a log. TailMax is the growth in bytes
// after which they are trimmed.
const (
	TailKeep = 64 << 10
	TailMax  = 1 << 20
)

// TrimHead frees the blocks of f before its last keep bytes. The file's size and the offsets of its
// writers stay as they are: a VMM that appends to it never notices (FALLOC_FL_PUNCH_HOLE of
// fallocate(2)).
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

// Tail is a file that grows at its end and is trimmed at its head. Offsets count from its base,
// which is the first byte that was kept at the open, until SetBase. One goroutine at a time uses
// it.
type Tail struct {
	path string
	f    *os.File // nil while the file does not exist
	base int64
}

// OpenTail opens the file for reading. One that does not exist reads as empty until it does. The
// caller closes it.
func OpenTail(path string) (*Tail, error) {
	t := &Tail{path: path}
	f, err := t.file()
	if f == nil || err != nil {
		return t, err
	}
	if t.base, err = firstKept(f, 0); err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

// file returns the open file, or nil as long as it does not exist.
func (t *Tail) file() (*os.File, error) {
	if t.f != nil {
		return t.f, nil
	}
	f, err := OpenRegular(t.path, os.O_RDONLY, AnyOwner)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t.f = f
	return f, nil
}

// TailSize returns how many bytes can be read now from base on, and when the last was written. A
// negative base stands for the first byte that is kept. The time is zero if the file does not
// exist. Only a file that was trimmed is opened for it.
func TailSize(path string, base int64) (int64, time.Time) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, time.Time{}
	}
	if base < 0 {
		base = 0
		if st.Blocks*512 < st.Size { // a hole
			t, err := OpenTail(path)
			if err != nil {
				return 0, time.Time{}
			}
			defer t.Close()
			base = t.base
		}
	}
	return max(0, st.Size-base), time.Unix(st.Mtim.Unix())
}

// firstKept returns where data begins: at from, or at the first line after the hole there.
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

// Kept returns off, or the offset of the first kept line after it if off was trimmed meanwhile.
func (t *Tail) Kept(off int64) (int64, error) {
	f, err := t.file()
	if f == nil || err != nil {
		return off, err
	}
	at, err := firstKept(f, t.base+off)
	return at - t.base, err
}

// ReadAt reads as io.ReaderAt does. Bytes that were trimmed read as zeros.
func (t *Tail) ReadAt(p []byte, off int64) (int, error) {
	f, err := t.file()
	if err != nil {
		return 0, err
	}
	if f == nil {
		return 0, io.EOF
	}
	return f.ReadAt(p, t.base+off)
}

// Base returns the place in the file that offsets count from.
func (t *Tail) Base() int64 { return t.base }

// SetBase makes offsets count from another place.
func (t *Tail) SetBase(base int64) { t.base = base }

// Close closes the file.
func (t *Tail) Close() error {
	if t.f == nil {
		return nil
	}
	return t.f.Close()
}
