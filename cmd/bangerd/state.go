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

// lockWait is how long a killed daemon may need to end: kill(1) does not wait for that.
const lockWait = 2 * time.Second

// lockFile is the file whose lock a daemon holds as long as it lives.
const lockFile = "lock"

// lock locks the state directory until the file is closed, and writes this process's pid. It waits
// at most lockWait. The error names the process that holds the lock.
func lock(stateDir string) (*os.File, error) {
	path := filepath.Join(stateDir, lockFile)
	f, err := host.OpenPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the state directory: %w", err)
	}
	end := time.Now().Add(lockWait)
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		return nil, lockedError(stateDir, f)
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("cannot lock the state directory: %w", err)
	}
	return f, nil
}

// lockedError names the process that holds the lock. It need not be a bangerd: under an earlier
// version other users could open the file.
func lockedError(stateDir string, f *os.File) error {
	written, _ := io.ReadAll(io.NewSectionReader(f, 0, 32))
	pid := strings.TrimSpace(string(written))
	holder := host.LockHolder(f.Name())
	if holder == "" || strings.HasPrefix(holder, "process "+pid+" ") {
		return fmt.Errorf("the state directory %s is in use by bangerd with pid %s",
			stateDir, printable.Line(pid))
	}
	return fmt.Errorf("the state directory %s is locked by %s; end it if it is no bangerd",
		stateDir, holder)
}

// inUse reports whether a living process holds the lock of a state directory. It changes nothing.
func inUse(stateDir string) (bool, error) {
	path := filepath.Join(stateDir, lockFile)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
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

// instance returns the UUID of the state directory, which the caller has locked. It makes one the
// first time.
func instance(stateDir string) (string, error) {
	path := filepath.Join(stateDir, instanceFile)
	err := errors.Join(host.MakePrivate(path), host.RemoveUnfinished(path, 0))
	if err != nil {
		return "", err
	}
	if id, err := readInstance(stateDir); !errors.Is(err, os.ErrNotExist) {
		return id, err
	}
	id := uuid.NewString()
	return id, host.ReplaceFile(path, 0o600, func(f *os.File) error {
		_, err := f.WriteString(id + "\n")
		return err
	})
}

// readInstance returns the UUID of a state directory that has one.
func readInstance(stateDir string) (string, error) {
	path := filepath.Join(stateDir, instanceFile)
	b, err := host.ReadRegular(path, host.AnyOwner, 128)
	if err != nil {
		return "", err
	}
	id, err := uuid.Parse(strings.TrimSpace(string(b)))
	if err != nil {
		return "", fmt.Errorf("%s holds no UUID: %w", path, err)
	}
	return id.String(), nil
}
