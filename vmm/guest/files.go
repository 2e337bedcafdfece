package guest

import (
	"errors"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// files are those below a root, of which it is an open descriptor.
type files int

// at opens the directory of name and gives its descriptor, which the caller closes, and the name in it.
func (f files) at(name string) (dir int, base string, err error) {
	name = path.Clean("/" + name)
	parent, base := path.Split(name)
	if base == "" {
		base = "."
	}
	dir, err = unix.Openat2(int(f), "."+parent, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if err == unix.ENOSYS { // before Linux 5.6
		dir, err = unix.Openat(int(f), "."+parent, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	}
	return dir, base, err
}

// with calls do with the directory of name, open, and the name in it.
func (f files) with(name string, do func(dir int, base string) error) error {
	dir, base, err := f.at(name)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return do(dir, base)
}

// lstat never gives what a symbolic link leads to.
func lstat(dir int, base string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

func kindOf(st *unix.Stat_t) uint32 { return st.Mode & unix.S_IFMT }

func (f files) stat(name string) (st unix.Stat_t, err error) {
	err = f.with(name, func(dir int, base string) (err error) {
		st, err = lstat(dir, base)
		return err
	})
	return st, err
}

// opendir opens a directory.
func (f files) opendir(name string) (d *os.File, err error) {
	err = f.with(name, func(dir int, base string) error {
		fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			d = os.NewFile(uintptr(fd), name)
		}
		return err
	})
	return d, err
}

// entry is a name in a directory.
type entry struct {
	name string
	st   unix.Stat_t
}

// next gives the next names in a directory, at most n; io.EOF after the last.
func next(d *os.File, n int) ([]entry, error) {
	for {
		names, err := d.Readdirnames(n)
		all := make([]entry, 0, len(names))
		for _, name := range names {
			if st, err := lstat(int(d.Fd()), name); err == nil { // else it was removed meanwhile
				all = append(all, entry{name, st})
			}
		}
		if len(all) > 0 || err != nil {
			return all, err
		}
	}
}

func (f files) readlink(name string) (target string, err error) {
	err = f.with(name, func(dir int, base string) error {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, base, buf)
		target = string(buf[:max(0, n)])
		return err
	})
	return target, err
}

// open opens a regular file with flags of open(2) and gives the descriptor and what its directory is then; a new one gets that mode. Others are
// not opened: that waits, or makes a device do something.
func (f files) open(name string, flags int, mode uint32) (fd int, in unix.Stat_t, err error) {
	fd = -1
	err = f.with(name, func(dir int, base string) error {
		st, err := lstat(dir, base)
		switch kind := kindOf(&st); {
		case err != nil && (err != unix.ENOENT || flags&unix.O_CREAT == 0):
			return err
		case err != nil || kind == unix.S_IFREG:
		case kind == unix.S_IFDIR:
			return unix.EISDIR
		case kind == unix.S_IFLNK:
			return unix.ELOOP
		default:
			return unix.ENXIO
		}
		fresh := err != nil
		// Without Go's poller: a file of /proc that would wait says EAGAIN.
		if fd, err = unix.Openat(dir, base, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0o600); err != nil {
			return err
		}
		if fresh { // and its mode none of the process's umask
			err = unix.Fchmod(fd, mode)
		}
		return errors.Join(err, unix.Fstat(dir, &in))
	})
	if err != nil && fd >= 0 {
		unix.Close(fd)
	}
	return fd, in, err
}

// pread reads once from a file, 0 bytes at its end.
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

// pair calls do with the directories of both names, open.
func (f files) pair(old, name string, do func(from int, old string, to int, name string) error) error {
	return f.with(old, func(from int, old string) error {
		return f.with(name, func(to int, name string) error { return do(from, old, to, name) })
	})
}

func (f files) rename(old, name string, flags uint) error {
	return f.pair(old, name, func(from int, old string, to int, name string) error {
		return unix.Renameat2(from, old, to, name, flags)
	})
}

func (f files) link(old, name string) error {
	return f.pair(old, name, func(from int, old string, to int, name string) error { return unix.Linkat(from, old, to, name, 0) })
}

func (f files) statfs(name string) (st unix.Statfs_t, err error) {
	err = f.with(name, func(dir int, base string) error {
		fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Fstatfs(fd, &st)
	})
	return st, err
}

// change is what SSH_FXP_SETSTAT asks for; nil is left alone.
type change struct {
	size     *uint64
	uid, gid uint32
	chown    bool
	mode     *uint32
	times    []int64 // of access and of change, as FilesTimes has them
	sync     bool
	tell     bool // the answer is what it is then
}

// setstat changes a file, or a link itself: the size, then the owner, whose change takes setuid away, the mode and the times.
func setstat(dir int, base string, c *change) error {
	if c.size != nil {
		if err := reopen(dir, base, unix.O_WRONLY, func(fd int) error { return unix.Ftruncate(fd, int64(*c.size)) }); err != nil {
			return err
		}
	}
	if c.chown {
		if err := unix.Fchownat(dir, base, int(int32(c.uid)), int(int32(c.gid)), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if c.mode != nil {
		st, err := lstat(dir, base)
		if err == nil && kindOf(&st) == unix.S_IFLNK {
			err = unix.EOPNOTSUPP
		}
		if err == nil {
			err = unix.Fchmodat(dir, base, *c.mode&0o7777, 0)
		}
		if err != nil {
			return err
		}
	}
	if c.times != nil {
		if err := unix.UtimesNanoAt(dir, base, []unix.Timespec{timespec(c.times[0]), timespec(c.times[1])}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if c.sync {
		return reopen(dir, base, unix.O_RDONLY, unix.Fsync)
	}
	return nil
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

// reopen calls do with a regular file or a directory, open.
func reopen(dir int, base string, flags int, do func(fd int) error) error {
	st, err := lstat(dir, base)
	if err != nil {
		return err
	}
	if kind := kindOf(&st); kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return unix.EINVAL
	}
	fd, err := unix.Openat(dir, base, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd)
}
