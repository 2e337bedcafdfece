package guestfs

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"banger/vmm/guest/sftp"
)

// Lseek finds the data and the holes of a guest's file. Of an agent that cannot tell them apart all
// is data.
func (s *FS) Lseek(stop interrupt, in *fuse.LseekIn, out *fuse.LseekOut) status {
	seek := func(ctx context.Context, _ *file, h *sftp.Handle) error {
		at, err := h.Seek(ctx, int64(in.Offset), in.Whence)
		out.Offset = uint64(at)
		return err
	}
	f, code := s.askFile(stop, &in.InHeader, in.Fh, seek)
	if code == status(syscall.EOPNOTSUPP) {
		size, _ := s.nodes.sizeAndMode(f.node, nil)
		out.Offset, code = SeekDense(in.Offset, in.Whence, size)
	}
	return code
}

// SeekDense is lseek(2) for SEEK_DATA and SEEK_HOLE in a file without holes.
func SeekDense(off uint64, whence uint32, size uint64) (uint64, status) {
	switch {
	case whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE:
		return 0, fuse.EINVAL
	case off >= size:
		return 0, status(syscall.ENXIO)
	case whence == unix.SEEK_DATA:
		return off, fuse.OK
	}
	return size, fuse.OK
}
