package guest

import (
	"errors"

	"banger/internal/value"
)

// These values say why a request failed; callers test for them with errors.Is. Package vmm has the
// same ones. Errors that functions return wrap one of them with a sentence that names the object.
var (
	ErrInvalid     = value.ErrInvalid
	ErrNotFound    = errors.New("no such thing")
	ErrAccess      = errors.New("not yours")
	ErrBusy        = errors.New("not possible in this state")
	ErrTooBig      = errors.New("too long")
	ErrUnsupported = errors.New("not supported by this VMM")
	ErrNotRunning  = errors.New("the VM is not running")
	ErrTimeout     = errors.New("the guest's agent did not answer in time")
	ErrNoAgent     = errors.New("the guest has no agent")
	ErrGone        = errors.New("can no longer happen")
)
