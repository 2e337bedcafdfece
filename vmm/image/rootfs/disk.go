package rootfs

import (
	"context"
	"crypto/sha256"
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
	progress func(read, size int64)) (sum string, err error) {
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
		progress(read, size)
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
// such ending. It refuses a qcow2 that leads to other files, before any program reads the disk.
func DiskFormat(f *os.File, name string) (string, error) {
	head, err := host.ReadQcow2(f)
	const standAlone = "make one that stands alone: qemu-img convert -O qcow2"
	switch ext := strings.ToLower(path.Ext(name)); {
	case ext == ".raw", errors.Is(err, host.ErrNoQcow2) && ext != ".qcow2":
		return "raw", nil
	case errors.Is(err, host.ErrNoQcow2):
		return "", errors.New("its name ends in .qcow2, but it is none")
	case err != nil:
		return "", err
	case head.BackingOffset != 0:
		return "", errors.New("it is an overlay of another disk; " + standAlone)
	case head.Incompatible&host.Qcow2DataFile != 0:
		return "", errors.New("it keeps its data in another file; " + standAlone)
	case head.Encryption != 0:
		return "", errors.New("it is encrypted")
	case head.Size > diskLimit:
		return "", fmt.Errorf("the guest would see more than %d bytes of it", int64(diskLimit))
	}
	return "qcow2", nil
}
