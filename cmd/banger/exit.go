package main

import (
	"errors"
	"syscall"
)

// Exit codes of banger.
const (
	exitOK       = 0
	exitFailed   = 1 // anything that has no code of its own
	exitUsage    = 2 // the command line is wrong; nothing was done
	exitNoVM     = 3 // no VM of that name
	exitState    = 4 // not possible in the state that the VM is in
	exitTimeout  = 5 // it did not come in time
	exitNoDaemon = 6 // bangerd does not run, or serves another directory
)

const exitHelp = `Exit codes:
  0  done
  1  failed
  2  wrong usage, nothing was done
  3  no such VM
  4  not possible in the VM's state
  5  it did not come in time
  6  bangerd does not run here
Of several VMs the first that failed decides; the others are still tried.`

// failure is an error of a command that was understood. Every other error is one of usage.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func exitCode(err error) int {
	var f *failure
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &f):
		return f.code
	default:
		return exitUsage
	}
}

// codeOf gives the exit code for what a file of the tree answered.
func codeOf(err error) int {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return exitFailed
	}
	switch errno {
	case syscall.ENOENT:
		return exitNoVM
	case syscall.EBUSY, syscall.EHOSTDOWN:
		return exitState
	case syscall.ETIMEDOUT:
		return exitTimeout
	case syscall.ENOTCONN, syscall.ESTALE, syscall.ECONNABORTED:
		return exitNoDaemon
	}
	return exitFailed
}
