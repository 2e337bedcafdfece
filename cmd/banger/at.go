package main

import (
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The functions of this file work on names in open directories and follow no symbolic link. os.Root
// would too, but makes descriptors non-blocking, which the tree's files take literally.

// retry repeats a system call that a signal interrupted.
func retry[T any](call func() (T, error)) (T, error) {
	for {
		if v, err := call(); err != unix.EINTR {
			return v, err
		}
	}
}

func openat(dir *os.File, name string, flags int, mode uint32) (*os.File, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func openDirAt(dir *os.File, name string) (*os.File, error) {
	return openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// openFileAt opens a regular file for reading, and no other.
func openFileAt(dir *os.File, name string) (*os.File, error) {
	f, err := openat(dir, name, unix.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if _, err := regularStat(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// regularStat returns the attributes of a regular file, and EINVAL for any other.
func regularStat(f *os.File) (st unix.Stat_t, err error) {
	if err = unix.Fstat(int(f.Fd()), &st); err == nil && kindOf(&st) != unix.S_IFREG {
		err = unix.EINVAL
	}
	return st, err
}

func kindOf(st *unix.Stat_t) uint32 { return st.Mode & unix.S_IFMT }

func lstatAt(dir *os.File, name string) (st unix.Stat_t, err error) {
	_, err = retry(func() (int, error) {
		return 0, unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return st, err
}

func readlinkAt(dir *os.File, name string) ([]byte, error) {
	buf := make([]byte, unix.PathMax)
	n, err := retry(func() (int, error) { return unix.Readlinkat(int(dir.Fd()), name, buf) })
	return buf[:max(0, n)], err
}

func setTimes(dir *os.File, name string, st *unix.Stat_t) error {
	times := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(int(dir.Fd()), name, times, unix.AT_SYMLINK_NOFOLLOW)
}

// setOpenTimes is futimens(3). Without a name the mount need not look one up.
func setOpenTimes(f *os.File, st *unix.Stat_t) error {
	times := [2]unix.Timespec{st.Atim, st.Mtim}
	p := uintptr(unsafe.Pointer(&times))
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, f.Fd(), 0, p, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// removeAt removes a file, or a directory with its content.
func removeAt(dir *os.File, name string, depth int) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	if depth >= maxDepth {
		return unix.ELOOP
	}
	sub, err := openDirAt(dir, name)
	if err != nil {
		return err
	}
	defer sub.Close()
	names, err := sub.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAt(sub, n, depth+1); err != nil {
			return err
		}
	}
	return unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
}

// counter counts the bytes that are written to it.
type counter atomic.Int64

func (n *counter) Write(p []byte) (int, error) {
	(*atomic.Int64)(n).Add(int64(len(p)))
	return len(p), nil
}
