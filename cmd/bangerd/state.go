package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// lockWait is how long a daemon that was killed may take to be gone: who killed it is not told when that is so.
const lockWait = 2 * time.Second

// lock takes the state directory for this process until the file is closed, and writes its pid.
// A second daemon is refused, after lockWait, by name of the first one's pid.
func lock(stateDir string) (*os.File, error) {
	path := filepath.Join(stateDir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the state directory: %w", err)
	}
	take := func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
	err = take()
	for end := time.Now().Add(lockWait); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(end); err = take() {
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		pid, _ := os.ReadFile(path)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("the state directory %s is in use by bangerd with pid %s", stateDir, strings.TrimSpace(string(pid)))
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

// instance gives the UUID of the state directory, made the first time.
func instance(stateDir string) (string, error) {
	path := filepath.Join(stateDir, "instance")
	if b, err := os.ReadFile(path); err == nil {
		id, err := uuid.Parse(strings.TrimSpace(string(b)))
		if err != nil {
			return "", fmt.Errorf("%s holds no UUID: %w", path, err)
		}
		return id.String(), nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	id := uuid.NewString()
	// Renamed into place, so that a crash leaves no empty file.
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(id+"\n"), 0o644); err != nil {
		return "", err
	}
	return id, os.Rename(tmp, path)
}
