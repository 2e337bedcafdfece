package sftp

import (
	"errors"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// tree is the files below a root: an open descriptor of that directory. No symbolic link in a path
// is followed.
type tree int

// parent opens the directory of name. It returns the descriptor, which the caller closes, and the
// name in that directory.
func (t tree) parent(name string) (dir int, base string, err error) {
	name = path.Clean("/" + name)
	above, base := path.Split(name)
	if base == "" {
		base = "."
	}
	dir, err = unix.Openat2(int(t), "."+above, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if err == unix.ENOSYS { // before Linux 5.6
		const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW
		dir, err = unix.Openat(int(t), "."+above, flags, 0)
	}
	return dir, base, err
}

// with calls f with the open directory of name, and the name in it.
func (t tree) with(name string, f func(dir int, base string) error) error {
	dir, base, err := t.parent(name)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return f(dir, base)
}

// withBoth calls f with the open directories of both names.
func (t tree) withBoth(
	old, name string, f func(oldDir int, old string, dir int, base string) error,
) error {
	return t.with(old, func(oldDir int, old string) error {
		return t.with(name, func(dir int, base string) error { return f(oldDir, old, dir, base) })
	})
}

// attrOf returns the attributes of a stat(2), or its error.
func attrOf(st *unix.Stat_t, err error) (Attr, error) {
	if err != nil {
		return Attr{}, err
	}
	return Attr{
		Size: uint64(st.Size), UID: st.Uid, GID: st.Gid, Mode: st.Mode,
		FileStat: FileStat{
			Nlink: uint64(st.Nlink), Blocks: uint64(st.Blocks), Rdev: st.Rdev,
			Atime: time.Unix(st.Atim.Unix()), Mtime: time.Unix(st.Mtim.Unix()),
			Ctime: time.Unix(st.Ctim.Unix()),
		},
	}, nil
}

func fstat(fd int) (Attr, error) {
	var st unix.Stat_t
	return attrOf(&st, unix.Fstat(fd, &st))
}

// lstat follows no symbolic link.
func lstat(dir int, base string) (Attr, error) {
	var st unix.Stat_t
	return attrOf(&st, unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW))
}

// kind returns the type of a file, as S_IFREG.
func (a *Attr) kind() uint32 { return a.Mode & unix.S_IFMT }

func (t tree) stat(name string) (a Attr, err error) {
	err = t.with(name, func(dir int, base string) (err error) {
		a, err = lstat(dir, base)
		return err
	})
	return a, err
}

func (t tree) opendir(name string) (d *os.File, err error) {
	err = t.with(name, func(dir int, base string) error {
		const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		fd, err := unix.Openat(dir, base, flags, 0)
		if err == nil {
			d = os.NewFile(uintptr(fd), name)
		}
		return err
	})
	return d, err
}

// readNames returns the next names in a directory, at most n, and io.EOF after the last.
func readNames(d *os.File, n int) ([]Name, error) {
	for {
		names, err := d.Readdirnames(n)
		all := make([]Name, 0, len(names))
		for _, name := range names {
			if a, err := lstat(int(d.Fd()), name); err == nil { // else it was removed meanwhile
				all = append(all, Name{name, a})
			}
		}
		if len(all) > 0 || err != nil {
			return all, err
		}
	}
}

func (t tree) readlink(name string) (target string, err error) {
	err = t.with(name, func(dir int, base string) error {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, base, buf)
		target = string(buf[:max(0, n)])
		return err
	})
	return target, err
}

// open opens a regular file with flags of open(2); a new one has that mode. It returns the
// descriptor and the state of the directory. Other kinds are refused: their open may wait, or make
// a device do something.
func (t tree) open(name string, flags int, mode uint32) (fd int, parent Attr, err error) {
	fd = -1
	err = t.with(name, func(dir int, base string) error {
		a, err := lstat(dir, base)
		fresh := err == unix.ENOENT && flags&unix.O_CREAT != 0
		switch kind := a.kind(); {
		case fresh:
		case err != nil:
			return err
		case kind == unix.S_IFDIR:
			return unix.EISDIR
		case kind == unix.S_IFLNK:
			return unix.ELOOP
		case kind != unix.S_IFREG:
			return unix.ENXIO
		}
		// Without Go's poller: a file of /proc that would wait says EAGAIN.
		const always = unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
		if fd, err = unix.Openat(dir, base, flags|always, 0o600); err != nil {
			return err
		}
		var modeErr error
		if fresh { // the process's umask counts for nothing
			modeErr = unix.Fchmod(fd, mode)
		}
		parent, err = fstat(dir)
		return errors.Join(modeErr, err)
	})
	if err != nil && fd >= 0 {
		unix.Close(fd)
	}
	return fd, parent, err
}

// pread reads once from a file, and returns 0 at its end.
func pread(fd int, p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(fd, p, off)
		if err != unix.EINTR {
			return max(0, n), err
		}
	}
}

// pwrite writes all of p.
func pwrite(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		default:
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

func (t tree) unlink(name string, flags int) error {
	return t.with(name, func(dir int, base string) error { return unix.Unlinkat(dir, base, flags) })
}

func (t tree) rename(old, name string, flags uint) error {
	return t.withBoth(old, name, func(oldDir int, old string, dir int, base string) error {
		return unix.Renameat2(oldDir, old, dir, base, flags)
	})
}

func (t tree) link(old, name string) error {
	return t.withBoth(old, name, func(oldDir int, old string, dir int, base string) error {
		return unix.Linkat(oldDir, old, dir, base, 0)
	})
}

func (t tree) statfs(name string) (s StatVFS, err error) {
	var st unix.Statfs_t
	err = t.with(name, func(dir int, base string) error {
		fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Fstatfs(fd, &st)
	})
	return StatVFS{
		Bsize: uint64(st.Bsize), Frsize: uint64(st.Frsize), Blocks: st.Blocks, Bfree: st.Bfree,
		Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree, Favail: st.Ffree,
		Namemax: uint64(st.Namelen),
	}, err
}

// setstat changes a file, or a link itself. The owner precedes the mode, because a change of owner
// clears setuid.
func setstat(dir int, base string, c *Change) error {
	if c.Size != nil {
		truncate := func(fd int) error { return unix.Ftruncate(fd, int64(*c.Size)) }
		if err := reopen(dir, base, unix.O_WRONLY, truncate); err != nil {
			return err
		}
	}
	if c.UID != nil {
		uid, gid := int(int32(*c.UID)), int(int32(*c.GID))
		if err := unix.Fchownat(dir, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if c.Mode != nil {
		if err := chmod(dir, base, *c.Mode&0o7777); err != nil {
			return err
		}
	}
	if c.Atime != TimeOmit || c.Mtime != TimeOmit {
		times := []unix.Timespec{timespec(c.Atime), timespec(c.Mtime)}
		if err := unix.UtimesNanoAt(dir, base, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if c.Sync {
		return reopen(dir, base, unix.O_RDONLY, unix.Fsync)
	}
	return nil
}

// chmod refuses symbolic links, whose mode Linux does not change.
func chmod(dir int, base string, mode uint32) error {
	a, err := lstat(dir, base)
	switch {
	case err != nil:
		return err
	case a.kind() == unix.S_IFLNK:
		return unix.EOPNOTSUPP
	}
	return unix.Fchmodat(dir, base, mode, 0)
}

func timespec(n int64) unix.Timespec {
	switch n {
	case TimeOmit:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case TimeNow:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.NsecToTimespec(n)
}

// reopen calls f with a regular file or a directory, open.
func reopen(dir int, base string, flags int, f func(fd int) error) error {
	a, err := lstat(dir, base)
	if err != nil {
		return err
	}
	if kind := a.kind(); kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return unix.EINVAL
	}
	const always = unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, base, flags|always, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd)
}
