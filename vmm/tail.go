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
// count from the first byte that was kept when it was opened.
type Tail struct {
	f    *os.File // nil if the file does not exist
	base int64
}

// OpenTail opens the file for reading; one that does not exist reads as empty.
// The caller closes it.
func OpenTail(path string) (*Tail, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Tail{}, nil
	}
	if err != nil {
		return nil, err
	}
	base, err := firstKept(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Tail{f: f, base: base}, nil
}

// firstKept finds where the data of a trimmed file begins: after the hole, at the next line.
func firstKept(f *os.File) (int64, error) {
	base, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) || base == 0 {
		return 0, nil // empty, or never trimmed
	}
	if err != nil {
		return 0, err
	}
	head := make([]byte, 4096)
	n, err := f.ReadAt(head, base)
	if err != nil && err != io.EOF {
		return 0, err
	}
	if i := bytes.IndexByte(head[:n], '\n'); i >= 0 {
		base += int64(i) + 1
	}
	return base, nil
}

// ReadAt reads as io.ReaderAt does; what was trimmed since the file was opened reads as zeros.
func (t *Tail) ReadAt(p []byte, off int64) (int, error) {
	if t.f == nil {
		return 0, io.EOF
	}
	return t.f.ReadAt(p, t.base+off)
}

// Size is how many bytes there are to read now.
func (t *Tail) Size() int64 {
	if t.f == nil {
		return 0
	}
	info, err := t.f.Stat()
	if err != nil {
		return 0
	}
	return max(0, info.Size()-t.base)
}

// Close closes the file.
func (t *Tail) Close() error {
	if t.f == nil {
		return nil
	}
	return t.f.Close()
}
