package vmm

import (
	"errors"

	"banger/vmm/guest"
)

// Errors that callers test for with errors.Is. fs/errno.go maps each to one errno. Functions wrap
// them in a sentence that names the object.
var (
	ErrInvalid      = guest.ErrInvalid                  // EINVAL
	ErrNameTooLong  = errors.New("name too long")       // ENAMETOOLONG
	ErrExists       = errors.New("already exists")      // EEXIST
	ErrNotFound     = guest.ErrNotFound                 // ENOENT
	ErrBusy         = guest.ErrBusy                     // EBUSY
	ErrNotRunning   = guest.ErrNotRunning               // EHOSTDOWN
	ErrTimeout      = guest.ErrTimeout                  // ETIMEDOUT
	ErrNoAgent      = guest.ErrNoAgent                  // EHOSTUNREACH
	ErrProtected    = errors.New("the VM is protected") // EPERM
	ErrNotPermitted = errors.New("not permitted")       // EPERM
	ErrAccess       = guest.ErrAccess                   // EACCES
	ErrUnsupported  = guest.ErrUnsupported              // EOPNOTSUPP
	ErrAddressInUse = errors.New("the port is in use")  // EADDRINUSE
	ErrTooBig       = guest.ErrTooBig                   // E2BIG
	ErrNoSpace      = errors.New("no space left")       // ENOSPC
	ErrNoMemory     = errors.New("not enough memory")   // ENOMEM
	ErrGone         = guest.ErrGone                     // EIO
)
