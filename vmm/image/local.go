package image

import (
	"errors"
	"fmt"
	"os"
	"path"

	"banger/vmm"

	"golang.org/x/sys/unix"
)

// local is a file or directory of the host that a user named, opened with that user's rights.
type local struct {
	rights rights
	file   *os.File
	dir    bool
}

// rights are whose a system call is, by the kernel's rules for files (credentials(7)).
type rights struct {
	uid, gid uint32
	groups   []uint32
}

// openLocal opens a path with the caller's rights: a relative one from the caller's working directory, an absolute one
// from its root. ErrInvalid where that cannot be, ErrAccess or ErrNotFound as the kernel says.
func openLocal(name string, by vmm.Caller) (*local, error) {
	base := by.Dir
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC}
	if path.IsAbs(name) {
		base = by.Root
		how.Resolve = unix.RESOLVE_IN_ROOT
	}
	if base == nil {
		return nil, fmt.Errorf("cannot tell what %.200q is: the process that names it is not to be seen from here: %w", name, vmm.ErrInvalid)
	}
	if os.Getuid() != 0 && by.UID != uint32(os.Getuid()) {
		return nil, fmt.Errorf("this daemon runs as uid %d and can open files for that user only: %w", os.Getuid(), vmm.ErrNotPermitted)
	}
	l := &local{rights: rights{by.UID, by.GID, by.Groups}}
	var err error
	if l.file, err = l.rights.open(base, name, &how); err != nil {
		return nil, err
	}
	fi, err := l.file.Stat()
	if err == nil && !fi.Mode().IsRegular() && !fi.IsDir() {
		err = fmt.Errorf("%.200q is neither a file nor a directory: %w", name, vmm.ErrInvalid)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	l.dir = fi.IsDir()
	return l, nil
}

// open opens a regular file below the directory, whose names of it come from who made it: nothing above it, no link out of it.
func (l *local) open(name string) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	}
	f, err := l.rights.open(l.file, name, &how)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%.200q is not a regular file: %w", name, vmm.ErrInvalid)
	}
	return f, nil
}

// close may be called of nil.
func (l *local) close() {
	if l != nil && l.file != nil {
		l.file.Close()
	}
}

// open is openat2(2) with these rights.
func (r *rights) open(base *os.File, name string, how *unix.OpenHow) (*os.File, error) {
	var fd int
	err := r.do(func() (err error) {
		for {
			if fd, err = unix.Openat2(int(base.Fd()), name, how); err != unix.EINTR && err != unix.EAGAIN {
				return err
			}
		}
	})
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("cannot open %.200q: %w", name, vmm.ErrAccess)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		// Not ErrNotFound: the file that was written to is there.
		return nil, fmt.Errorf("there is no %.200q: %w", name, vmm.ErrInvalid)
	case err != nil:
		return nil, fmt.Errorf("cannot open %.200q (%v): %w", name, err, vmm.ErrInvalid)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// do runs f with these rights on files. The thread ends with it: rights that could not be given back are nobody's.
func (r *rights) do(f func() error) error {
	if os.Getuid() != 0 || r.uid == 0 {
		return f()
	}
	return onOwnThread(func() error {
		// The raw calls change this thread only; the syscall package's would change all.
		groups := append([]uint32{r.gid}, r.groups...)
		if err := setThreadGroups(groups); err != nil {
			return fmt.Errorf("cannot take the groups of uid %d: %w", r.uid, err)
		}
		for _, c := range []struct{ call, id uintptr }{{unix.SYS_SETFSGID, uintptr(r.gid)}, {unix.SYS_SETFSUID, uintptr(r.uid)}} {
			unix.RawSyscall(c.call, c.id, 0, 0)
			// It tells no error: the id in force is what an impossible one gives back (setfsuid(2)).
			if now, _, _ := unix.RawSyscall(c.call, ^uintptr(0), 0, 0); uint32(now) != uint32(c.id) {
				return fmt.Errorf("cannot take the rights of uid %d", r.uid)
			}
		}
		return f()
	})
}
