package fs

import (
	"context"
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm"
)

// errnos maps what the packages below say to what the kernel is told, first match first.
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{errAgain, syscall.EAGAIN},
	{vmm.ErrTooBig, syscall.E2BIG},
	{vmm.ErrNameTooLong, syscall.ENAMETOOLONG},
	{vmm.ErrInvalid, syscall.EINVAL},
	{vmm.ErrExists, syscall.EEXIST},
	{vmm.ErrNotFound, syscall.ENOENT},
	{vmm.ErrBusy, syscall.EBUSY},
	{vmm.ErrNotRunning, syscall.EHOSTDOWN},
	{vmm.ErrTimeout, syscall.ETIMEDOUT},
	{vmm.ErrNoAgent, syscall.EHOSTUNREACH},
	{vmm.ErrProtected, syscall.EPERM},
	{vmm.ErrNotPermitted, syscall.EPERM},
	{vmm.ErrAccess, syscall.EACCES},
	{vmm.ErrAddressInUse, syscall.EADDRINUSE},
	{vmm.ErrUnsupported, syscall.EOPNOTSUPP},
	{vmm.ErrNoSpace, syscall.ENOSPC},
	{vmm.ErrNoMemory, syscall.ENOMEM},
	{vmm.ErrGone, syscall.EIO},
	{syscall.EPIPE, syscall.EPIPE},
	{syscall.EBUSY, syscall.EBUSY},
	{syscall.ENOSPC, syscall.ENOSPC},
	{syscall.EDQUOT, syscall.EDQUOT},
	{syscall.ENOMEM, syscall.ENOMEM},
	{context.Canceled, syscall.EINTR},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},
}

// errAgain is for a stream that has nothing for who does not want to wait.
var errAgain = errors.New("nothing there yet")

// errno gives the status for err; EIO for what it does not know.
func errno(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return fuse.Status(e.errno)
		}
	}
	return fuse.EIO
}
