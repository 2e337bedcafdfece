package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"banger/internal/host"
	"banger/internal/printable"
)

// lockWait is how long a daemon that was killed may take to be gone: who killed it is not told when that is so.
const lockWait = 2 * time.Second

// lockFile is locked by the daemon of its directory for as long as that lives.
const lockFile = "lock"

// lock takes the state directory for this process until the file is closed, and writes its pid.
// It waits at most lockWait; the error names the process that holds the lock.
func lock(stateDir string) (*os.File, error) {
	path := filepath.Join(stateDir, lockFile)
	f, err := host.OpenPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the state directory: %w", err)
	}
	take := func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
	err = take()
	for end := time.Now().Add(lockWait); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(end); err = take() {
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, lockedError(stateDir, f)
		}
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("cannot write %s: %w", path, err)
	}
	return f, nil
}

// lockedError says who has the lock. That may be a process that opened the file while it had the
// permissions of an earlier version.
func lockedError(stateDir string, f *os.File) error {
	written, _ := io.ReadAll(io.NewSectionReader(f, 0, 32))
	pid := strings.TrimSpace(string(written))
	holder := host.LockHolder(f.Name())
	if holder == "" || strings.HasPrefix(holder, "process "+pid+" ") {
		return fmt.Errorf("the state directory %s is in use by bangerd with pid %s", stateDir, printable.Line(pid))
	}
	return fmt.Errorf("the state directory %s is locked by %s; end it if it is no bangerd", stateDir, holder)
}

// inUse reports whether a living process holds the lock of a state directory. It changes nothing.
func inUse(stateDir string) (bool, error) {
	f, err := os.OpenFile(filepath.Join(stateDir, lockFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// instanceFile holds the UUID of a state directory.
const instanceFile = "instance"

// instance gives the UUID of the state directory, made the first time.
func instance(stateDir string) (string, error) {
	path := filepath.Join(stateDir, instanceFile)
	if err := host.MakePrivate(path); err != nil {
		return "", err
	}
	if id, err := readInstance(stateDir); !errors.Is(err, os.ErrNotExist) {
		return id, err
	}
	id := uuid.NewString()
	// Renamed into place, so that a crash leaves no empty file.
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(id+"\n"), 0o600); err != nil {
		return "", err
	}
	return id, os.Rename(tmp, path)
}

// readInstance gives the UUID of a state directory that has one.
func readInstance(stateDir string) (string, error) {
	path := filepath.Join(stateDir, instanceFile)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 128))
	if err != nil {
		return "", err
	}
	id, err := uuid.Parse(strings.TrimSpace(string(b)))
	if err != nil {
		return "", fmt.Errorf("%s holds no UUID: %w", path, err)
	}
	return id.String(), nil
}
