package image

import (
	"errors"
	"fmt"
	"os"

	"banger/internal/host"
	"banger/vmm"
	"banger/vmm/image/rootfs"

	"golang.org/x/sys/unix"
)

// local is a file or directory of the host that was opened with a user's rights.
type local struct {
	rights rights
	file   *os.File
	dir    bool
}

// rights are the ids by which the kernel permits access to files (credentials(7)).
type rights struct {
	uid, gid uint32
	groups   []uint32
}

// openLocal opens a path with the caller's rights, from the caller's working directory or root. The
// error is ErrAccess where the kernel denies access, ErrBusy for a file under a lease, and
// ErrInvalid for other paths that cannot be opened.
func openLocal(name string, by vmm.Caller) (*local, error) {
	if err := mayOpenFor(by.UID); err != nil {
		return nil, err
	}
	l := &local{rights: rights{by.UID, by.GID, by.Groups}}
	err := l.rights.do(func() error {
		found, err := walkTo(by, name)
		if err != nil {
			return err
		}
		defer found.Close()
		l.file, l.dir, err = reopen(found, name)
		return err
	})
	if err != nil {
		return nil, openError(name, err)
	}
	return l, nil
}

// mayOpenFor refuses a user whose rights this daemon cannot take.
func mayOpenFor(uid uint32) error {
	if os.Getuid() != 0 && uid != uint32(os.Getuid()) {
		return fmt.Errorf("this daemon runs as uid %d and can open files for that user only: %w",
			os.Getuid(), vmm.ErrNotPermitted)
	}
	return nil
}

// open opens a regular file below the directory. The author of the archive chose the name: it
// cannot lead out of the directory or to another file system.
func (l *local) open(name string) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	var f *os.File
	var dir bool
	err := l.rights.do(func() error {
		found, err := openat2(l.file, name, &how)
		if err != nil {
			return err
		}
		defer found.Close()
		f, dir, err = reopen(found, name)
		return err
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("%.200q: %w", name, rootfs.ErrAbsent)
	}
	if err != nil {
		return nil, openError(name, err)
	}
	if dir {
		f.Close()
		return nil, fmt.Errorf("%.200q is not a regular file: %w", name, vmm.ErrInvalid)
	}
	return f, nil
}

// reopen opens the file or directory of an O_PATH descriptor for reading. It refuses other kinds:
// opening these may block or have effects.
func reopen(found *os.File, name string) (f *os.File, dir bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(found.Fd()), &st); err != nil {
		return nil, false, err
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return nil, false, fmt.Errorf("it is neither a file nor a directory: %w", vmm.ErrInvalid)
	}
	path := fmt.Sprintf("/proc/thread-self/fd/%d", found.Fd())
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, err
	}
	return os.NewFile(uintptr(fd), name), kind == unix.S_IFDIR, nil
}

// openError is the error of a path that cannot be opened.
func openError(name string, err error) error {
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("cannot open %.200q: %w", name, vmm.ErrAccess)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		// Not ErrNotFound: the user wrote to a file that exists.
		return fmt.Errorf("there is no %.200q: %w", name, vmm.ErrInvalid)
	case errors.Is(err, unix.EAGAIN):
		return fmt.Errorf("cannot open %.200q: another program holds a lease on it or renames a part "+
			"of its path; try again: %w", name, vmm.ErrBusy)
	case errors.Is(err, vmm.ErrInvalid):
		return fmt.Errorf("cannot open %.200q: %w", name, err)
	}
	return fmt.Errorf("cannot open %.200q (%v): %w", name, err, vmm.ErrInvalid)
}

// close closes the file. l may be nil.
func (l *local) close() {
	if l != nil && l.file != nil {
		l.file.Close()
	}
}

// do runs f with these rights on a thread that ends afterwards, so that no other goroutine can get
// them.
func (r *rights) do(f func() error) error {
	if os.Getuid() != 0 || r.uid == 0 {
		return f()
	}
	return host.OnOwnThread(func() error {
		// The raw calls change this thread only; the syscall package's would change all.
		groups := append([]uint32{r.gid}, r.groups...)
		if err := setThreadGroups(groups); err != nil {
			return fmt.Errorf("cannot take the groups of uid %d: %w", r.uid, err)
		}
		for _, c := range []struct{ call, id uintptr }{
			{unix.SYS_SETFSGID, uintptr(r.gid)}, {unix.SYS_SETFSUID, uintptr(r.uid)},
		} {
			unix.RawSyscall(c.call, c.id, 0, 0)
			// It reports no error, but a call with an impossible id returns the current one
			// (setfsuid(2)).
			if now, _, _ := unix.RawSyscall(c.call, ^uintptr(0), 0, 0); uint32(now) != uint32(c.id) {
				return fmt.Errorf("cannot take the rights of uid %d", r.uid)
			}
		}
		// Setting the uid drops the capabilities for files. Others, such as CAP_SYS_PTRACE, open
		// files as well.
		if err := host.DropCapabilities(); err != nil {
			return fmt.Errorf("cannot drop the capabilities: %w", err)
		}
		return f()
	})
}
