package main

import (
	"errors"
	"fmt"
	"syscall"
)

// Exit codes of banger. exitHelp explains them.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNoVM     = 3
	exitState    = 4
	exitTimeout  = 5
	exitNoDaemon = 6
)

const exitHelp = `Exit codes:
  0  done
  1  failed
  2  wrong usage, nothing was done
  3  no such VM
  4  not possible in the VM's state
  5  timed out
  6  bangerd does not run here
Of several VMs the first that failed decides; the others are still tried.`

// failure is an error of a valid command line. Every other error is one of usage.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func failf(code int, format string, args ...any) error {
	return &failure{code, fmt.Errorf(format, args...)}
}

func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code
	}
	return exitUsage
}

// codeOf returns the exit code for an error of a file of the tree.
func codeOf(err error) int {
	switch errnoOf(err) {
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
