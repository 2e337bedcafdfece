package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// copyBlock is how many bytes are read at once. A block of zeros becomes a hole.
const copyBlock = 256 << 10

// ErrTooMuch is the error of a copy that is over its limit.
var ErrTooMuch = errors.New("more bytes than are allowed")

// Limit bounds a copy in bytes; 0 stands for no bound.
type Limit struct {
	Read   int64 // all bytes
	Stored int64 // bytes of blocks that are not zeros
}

// CopySparse copies src to dst, from offset 0 on, to the end of src. It returns the bytes read.
// Blocks of zeros become holes. It ends with ctx, at the limit with ErrTooMuch, and with ENOSPC
// before the file system of dst is full.
func CopySparse(ctx context.Context, dst *os.File, src io.Reader, limit Limit) (int64, error) {
	room := Room{File: dst}
	buf := make([]byte, copyBlock)
	var at, stored int64
	for {
		if err := ctx.Err(); err != nil {
			return at, err
		}
		n, err := fill(src, buf)
		if limit.Read > 0 && int64(n) > limit.Read-at {
			return at, ErrTooMuch
		}
		if b := buf[:n]; !Zeros(b) {
			if stored += int64(n); limit.Stored > 0 && stored > limit.Stored {
				return at, ErrTooMuch
			}
			if err := room.Take(int64(n)); err != nil {
				return at, err
			}
			if _, err := dst.WriteAt(b, at); err != nil {
				return at, err
			}
		}
		at += int64(n)
		if err == io.EOF {
			return at, dst.Truncate(at)
		}
		if err != nil {
			return at, err
		}
	}
}

// fill reads until p is full or r fails. Unlike io.ReadFull it passes the error of r on as it is.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// Zeros reports whether all bytes of b are 0.
func Zeros(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroBlock))
		if string(b[:n]) != string(zeroBlock[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

var zeroBlock [4096]byte

const (
	// roomStep is after how many bytes the file system is asked again.
	roomStep = 16 << 20
	// A twentieth of a file system, and at most this, is left free.
	mostReserve = 1 << 30
)

// Room keeps a reserve of a file's file system free: for the host's own programs, and for VMs.
type Room struct {
	File *os.File
	left int64
}

// Take accounts for n bytes that are to be written. It returns ENOSPC if the reserve would shrink.
func (r *Room) Take(n int64) error {
	if r.left -= n; r.left >= 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(r.File.Fd()), &st); err != nil {
		return err
	}
	reserve := min(int64(st.Blocks)*st.Bsize/20, mostReserve)
	available := int64(st.Bavail)*st.Bsize - reserve
	if available < n {
		return fmt.Errorf("%d bytes stay free for the host: %w", reserve, syscall.ENOSPC)
	}
	r.left = min(available, roomStep) - n
	return nil
}

// NewReader returns a reader of r that ends with ctx and calls read with the count of each piece;
// read may be nil.
func NewReader(ctx context.Context, r io.Reader, read func(n int)) io.Reader {
	return &reader{ctx, r, read}
}

type reader struct {
	ctx  context.Context
	r    io.Reader
	read func(n int)
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	if r.read != nil {
		r.read(n)
	}
	return n, err
}
