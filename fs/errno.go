package fs

import (
	"context"
	"errors"
	"syscall"

	"banger/vmm"
)

// errnos maps errors to what the kernel gets, first match first.
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
	{vmm.ErrQuota, syscall.EDQUOT},
	{vmm.ErrGone, syscall.EIO},
	{syscall.EPIPE, syscall.EPIPE},
	{syscall.EBUSY, syscall.EBUSY},
	{syscall.ENOSPC, syscall.ENOSPC},
	{syscall.EDQUOT, syscall.EDQUOT},
	{syscall.ENOMEM, syscall.ENOMEM},
	{syscall.EROFS, syscall.EROFS},
	{context.Canceled, syscall.EINTR},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},
}

// errAgain is for a stream that has no data for a nonblocking reader.
var errAgain = errors.New("nothing there yet")

// errno returns the errno of an error, EIO for an unknown one.
func errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.errno
		}
	}
	return syscall.EIO
}
