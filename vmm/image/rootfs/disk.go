package rootfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"banger/internal/host"
)

// diskLimit bounds the size of a disk for the guest, in bytes.
const diskLimit = 1 << 40

// CopyDisk copies a disk without its zeros and returns the SHA-256 of all of it. More than limit
// bytes of other blocks are an error.
func CopyDisk(ctx context.Context, dst, src *os.File, limit int64,
	progress func(float64)) (sum string, err error) {
	fi, err := src.Stat()
	if err != nil {
		return "", err
	}
	size := fi.Size()
	if size == 0 || size > diskLimit {
		return "", fmt.Errorf("it has %d bytes; a disk has 1 to %d", size, int64(diskLimit))
	}
	h := sha256.New()
	read := int64(0)
	from := host.NewReader(ctx, io.NewSectionReader(src, 0, size), func(n int) {
		read += int64(n)
		progress(float64(read) / float64(size))
	})
	n, err := host.CopySparse(ctx, dst, io.TeeReader(from, h), host.Limit{Stored: limit})
	switch {
	case errors.Is(err, host.ErrTooMuch):
		return "", fmt.Errorf("it holds more than %d bytes (image_max_size)", limit)
	case err != nil:
		return "", err
	case n != size:
		return "", errors.New("it was changed while it was read")
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// DiskFormat returns "raw" or "qcow2" by a disk's name, or by its first bytes if the name has no
// such ending. It refuses a qcow2 that leads to other files, before any program reads the disk
// (docs/interop/qcow2.txt of QEMU, "Header").
func DiskFormat(f *os.File, name string) (string, error) {
	var head [104]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	is := bytes.HasPrefix(head[:], []byte("QFI\xfb"))
	switch ext := strings.ToLower(path.Ext(name)); {
	case ext == ".raw" || ext != ".qcow2" && !is:
		return "raw", nil
	case !is:
		return "", errors.New("its name ends in .qcow2, but it is none")
	}
	order := binary.BigEndian
	version, features := order.Uint32(head[4:]), uint64(0)
	if version >= 3 {
		features = order.Uint64(head[72:])
	}
	const dataFile = 1 << 2
	const standAlone = "make one that stands alone: qemu-img convert -O qcow2"
	switch {
	case n < 72 || version != 2 && version != 3 || version == 3 && n < len(head):
		return "", errors.New("it is a damaged qcow2, or one of a version that is not known")
	case order.Uint64(head[8:]) != 0:
		return "", errors.New("it is an overlay of another disk; " + standAlone)
	case features&dataFile != 0:
		return "", errors.New("it keeps its data in another file; " + standAlone)
	case order.Uint32(head[32:]) != 0:
		return "", errors.New("it is encrypted")
	case order.Uint64(head[24:]) > diskLimit:
		return "", fmt.Errorf("the guest would see more than %d bytes of it", int64(diskLimit))
	}
	return "qcow2", nil
}
