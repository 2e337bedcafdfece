package vmm

import "errors"

// What callers test for with errors.Is; fs/errno.go maps each to one errno.
// The errors that functions return wrap one of these with a sentence that names the object.
var (
	ErrInvalid      = errors.New("invalid value")                            // EINVAL
	ErrNameTooLong  = errors.New("name too long")                            // ENAMETOOLONG
	ErrExists       = errors.New("already exists")                           // EEXIST
	ErrNotFound     = errors.New("no such thing")                            // ENOENT
	ErrBusy         = errors.New("not possible in this state")               // EBUSY
	ErrNotRunning   = errors.New("the VM is not running")                    // EHOSTDOWN
	ErrTimeout      = errors.New("the guest's agent did not answer in time") // ETIMEDOUT
	ErrNoAgent      = errors.New("the guest has no agent")                   // EHOSTUNREACH
	ErrProtected    = errors.New("the VM is protected")                      // EPERM
	ErrNotPermitted = errors.New("not permitted")                            // EPERM
	ErrAccess       = errors.New("not yours")                                // EACCES
	ErrUnsupported  = errors.New("not supported by this VMM")                // EOPNOTSUPP
	ErrAddressInUse = errors.New("the port is in use")                       // EADDRINUSE
	ErrTooBig       = errors.New("too long")                                 // E2BIG
	ErrNoSpace      = errors.New("no space left")                            // ENOSPC
	ErrNoMemory     = errors.New("not enough memory")                        // ENOMEM
	ErrGone         = errors.New("can no longer happen")                     // EIO
)
