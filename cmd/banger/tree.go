package main

import (
	"cmp"
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

// systemMount is the tree of root's daemon.
const systemMount = "/run/banger"

// defaultMount returns the tree that is used unless the user names one: $BANGER_MOUNT, that of the
// user's own daemon if something is mounted there, or that of root's.
func defaultMount() string {
	if dir := os.Getenv("BANGER_MOUNT"); dir != "" {
		return dir
	}
	if own := ownMount(); own != "" && isMountPoint(own) {
		return own
	}
	return systemMount
}

// ownMount returns where the daemon of an ordinary user mounts its tree, empty for root.
func ownMount() string {
	uid := os.Geteuid()
	if uid == 0 {
		return ""
	}
	dir := cmp.Or(os.Getenv("XDG_RUNTIME_DIR"), fmt.Sprintf("/run/user/%d", uid))
	return filepath.Join(dir, "banger")
}

// isMountPoint reports whether something is mounted at dir, be it dead.
func isMountPoint(dir string) bool {
	var own, above unix.Stat_t
	if err := unix.Stat(dir, &own); err != nil {
		return errors.Is(err, syscall.ENOTCONN) || errors.Is(err, syscall.ECONNABORTED)
	}
	return unix.Stat(filepath.Dir(dir), &above) == nil && own.Dev != above.Dev
}

// open opens a file without Go's poller. The poller makes descriptors non-blocking, and files that
// wait would return EAGAIN.
func open(path string, flags int) (*os.File, error) {
	fd, err := retry(func() (int, error) { return unix.Open(path, flags|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// read returns the content of a file. It blocks as long as the file does.
func read(path string) (string, error) {
	f, err := open(path, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return string(b), err
}

// readTrimmed is read without the white space at both ends.
func readTrimmed(path string) (string, error) {
	text, err := read(path)
	return strings.TrimSpace(text), err
}

// write writes text with one write(2), which makes it one command.
func write(path, text string) error {
	f, err := open(path, os.O_WRONLY|os.O_TRUNC)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write([]byte(text))
	return err
}

func (t tree) file(name string) string { return filepath.Join(string(t), name) }

// check fails when no daemon serves the tree.
func (t tree) check() error {
	_, err := os.Stat(t.file("vms"))
	if err == nil {
		return nil
	}
	also := ""
	if own := ownMount(); own != "" && t == systemMount && os.Getenv("BANGER_MOUNT") == "" {
		also = ", and nothing is mounted at " + own
	}
	err = fmt.Errorf("cannot reach bangerd at %s%s, is it running? (%w)", t, also, errnoOf(err))
	return &failure{exitNoDaemon, err}
}

// locate adds to a refusal of the kernel's which daemon's files it is about: a user may have
// another.
func (t tree) locate(err error) error {
	_, here := errors.AsType[*fs.PathError](err) // of a file of the user's
	if here || !errors.Is(err, syscall.EACCES) {
		return err
	}
	return &failure{exitCode(err), fmt.Errorf("%w (by the bangerd at %s)", err, t)}
}

// names returns the names in a directory of the tree, none if it cannot be read.
func (t tree) names(dir string) []string {
	entries, _ := os.ReadDir(t.file(dir))
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

// vm is a VM and its directory.
type vm struct{ name, dir string }

func (v vm) file(name string) string { return filepath.Join(v.dir, name) }

// explain returns the failure of an action on the VM, with the sentence in the VM's file `error`.
func (v vm) explain(doing string, err error) error { return explain(doing, v.file("error"), err) }

// command writes a word to the VM's state and waits until the daemon has done it.
func (v vm) command(word string) error {
	return v.explain("cannot "+word+" "+v.name, write(v.file("state"), word+"\n"))
}

// remove removes a VM that has stopped.
func (t tree) remove(v vm) error {
	return explain("cannot remove "+v.name, t.file("error"), syscall.Rmdir(v.dir))
}

// vm returns a VM that exists.
func (t tree) vm(name string) (vm, error) {
	v, err := t.newVM(name)
	if err != nil {
		return vm{}, err
	}
	if _, err := os.Stat(v.dir); errors.Is(err, fs.ErrNotExist) {
		return vm{}, failf(exitNoVM, "no VM is called %s%s", name, didYouMean(name, t.names("vms")))
	} else if err != nil {
		return vm{}, failf(codeOf(err), "cannot find %s: %w", name, errnoOf(err))
	}
	return v, nil
}

// newVM returns a VM that need not exist.
func (t tree) newVM(name string) (vm, error) {
	if err := t.check(); err != nil {
		return vm{}, err
	}
	if !isName(name) {
		return vm{}, failf(exitUsage, "%q is no name of a VM", name)
	}
	return vm{name, t.file("vms/" + name)}, nil
}

// isName reports whether s can be the name of one file.
func isName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.Contains(s, "/")
}

// explain returns the failure of an action. Its text is the sentence that the daemon left in
// errorFile, if there is one. The sentence is about something else where the kernel refused an
// open: it asks no daemon.
func explain(doing, errorFile string, err error) error {
	if err == nil {
		return nil
	}
	code := codeOf(err)
	opening, _ := errors.AsType[*fs.PathError](err)
	byKernel := opening != nil && opening.Op == "open" && errors.Is(err, syscall.EACCES)
	if errorFile != "" && !byKernel {
		if sentence, err := readTrimmed(errorFile); err == nil && sentence != "" {
			return &failure{code, errors.New(sentence)}
		}
	}
	err = errnoOf(err)
	if meaning := meanings[err]; meaning != "" {
		return &failure{code, fmt.Errorf("%s: %s", doing, meaning)}
	}
	return &failure{code, fmt.Errorf("%s: %w", doing, err)}
}

// meanings holds what errnos mean in the tree where the system's words would mislead.
var meanings = map[error]string{
	syscall.EBUSY:        "not possible in this state",
	syscall.EHOSTDOWN:    "it is not running",
	syscall.ETIMEDOUT:    "the guest's agent did not answer in time",
	syscall.EHOSTUNREACH: "the guest has no agent",
	syscall.EIO:          "it can no longer happen, or the daemon failed; see its log",
	syscall.ENOTCONN:     "bangerd is gone",
}

// errnoOf drops the path and the name of the system call: the user typed neither.
func errnoOf(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}
