package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// tree is the directory that bangerd serves.
type tree string

// defaultMount is where the daemon is expected: the system's for root and wherever there is one, else the user's own.
func defaultMount() string {
	if dir := os.Getenv("BANGER_MOUNT"); dir != "" {
		return dir
	}
	const system = "/run/banger"
	if own := os.Getenv("XDG_RUNTIME_DIR"); os.Geteuid() != 0 && own != "" {
		if _, err := os.Stat(system + "/vms"); err != nil {
			return filepath.Join(own, "banger")
		}
	}
	return system
}

// open opens without Go's poller: that would make the descriptor non-blocking (a FUSE file seems pollable), and files that wait would
// answer EAGAIN.
func open(path string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case err != unix.EINTR:
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// read gives a file's content. It blocks as long as the file does.
func read(path string) (string, error) {
	f, err := open(path, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return string(b), err
}

// write writes text with one write(2): one command.
func write(path, text string) error {
	f, err := open(path, os.O_WRONLY|os.O_TRUNC)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write([]byte(text))
	return err
}

// check fails when no daemon serves the tree.
func (t tree) check() error {
	if _, err := os.Stat(filepath.Join(string(t), "vms")); err != nil {
		return &failure{exitNoDaemon, fmt.Errorf("cannot reach bangerd at %s, is it running? (%w)", t, errnoOf(err))}
	}
	return nil
}

func (t tree) top(file string) string { return filepath.Join(string(t), file) }

// vm gives the directory of a VM that exists.
func (t tree) vm(name string) (string, error) {
	dir, err := t.dir(name)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", &failure{exitNoVM, fmt.Errorf("no VM is called %s", name)}
		}
		return "", &failure{codeOf(err), fmt.Errorf("cannot find %s: %w", name, errnoOf(err))}
	}
	return dir, nil
}

// dir gives the directory of a VM, whether it exists or not.
func (t tree) dir(name string) (string, error) {
	if err := t.check(); err != nil {
		return "", err
	}
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return "", &failure{exitUsage, fmt.Errorf("%q is no name of a VM", name)}
	}
	return filepath.Join(string(t), "vms", name), nil
}

// names gives the VMs there are.
func (t tree) names() []string {
	entries, err := os.ReadDir(t.top("vms"))
	if err != nil {
		return nil
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// explain makes the failure of doing something to a VM: with the sentence that the daemon left in errorFile, if it left one.
func explain(doing, errorFile string, err error) error {
	if err == nil {
		return nil
	}
	code := codeOf(err)
	if errorFile != "" {
		if sentence, rerr := read(errorFile); rerr == nil && strings.TrimSpace(sentence) != "" {
			return &failure{code, errors.New(strings.TrimSpace(sentence))}
		}
	}
	err = errnoOf(err)
	if meaning := meanings[err]; meaning != "" {
		return &failure{code, fmt.Errorf("%s: %s", doing, meaning)}
	}
	return &failure{code, fmt.Errorf("%s: %w", doing, err)}
}

// meanings are what the tree's errnos stand for, where the system's own words would mislead.
var meanings = map[error]string{
	syscall.EBUSY:        "not possible in this state",
	syscall.EHOSTDOWN:    "it is not running",
	syscall.ETIMEDOUT:    "the guest's agent did not answer in time",
	syscall.EHOSTUNREACH: "the guest has no agent",
	syscall.EIO:          "it can no longer happen, or the daemon failed; see its log",
	syscall.ENOTCONN:     "bangerd is gone",
}

// errnoOf drops the path and the system call's name, which say nothing to a user who typed neither.
func errnoOf(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
