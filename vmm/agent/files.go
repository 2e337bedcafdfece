package agent

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"os"
	"path"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/sys/unix"

	"banger/vmm"
)

const (
	maxData  = 128 << 10 // bytes of one read: what the host's kernel asks for at once
	maxNames = 256       // of one answer to SSH_FXP_READDIR
)

func init() { sftp.MaxFilelist = maxNames }

// Files serves what is below root, as [vmm.FilesStream] says.
func Files(root string) StreamHandler {
	return func(json.RawMessage) (func(net.Conn), error) {
		return func(conn net.Conn) {
			defer conn.Close()
			fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return // the host sees the stream's end
			}
			defer unix.Close(fd)
			f := files(fd)
			_ = sftp.NewRequestServer(&packets{Conn: conn}, sftp.Handlers{FileGet: f, FilePut: f, FileCmd: f, FileList: f},
				sftp.WithRSAllocator(), sftp.WithRSMaxTxPacket(maxData)).Serve() // ends with the stream
		}, nil
	}
}

// packets writes a packet at once, which the server writes in two parts.
type packets struct {
	net.Conn
	part []byte // written by the server, and not by us
}

func (c *packets) Write(p []byte) (int, error) {
	c.part = append(c.part, p...)
	if len(c.part) < 4 || len(c.part)-4 < int(binary.BigEndian.Uint32(c.part)) {
		return len(p), nil
	}
	_, err := c.Conn.Write(c.part)
	c.part = c.part[:0]
	return len(p), err
}

// files are the handlers; it is an open descriptor of the root.
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
func lstat(dir int, base string) (info, error) {
	i := info{name: base}
	err := unix.Fstatat(dir, base, &i.st, unix.AT_SYMLINK_NOFOLLOW)
	return i, err
}

// info is a file as SSH_FXP_ATTRS tells of it.
type info struct {
	name string
	st   unix.Stat_t
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.st.Size }
func (i info) ModTime() time.Time { return time.Unix(i.st.Mtim.Unix()) }
func (i info) IsDir() bool        { return i.st.Mode&unix.S_IFMT == unix.S_IFDIR }
func (i info) Sys() any           { return nil }
func (i info) Uid() uint32        { return i.st.Uid }
func (i info) Gid() uint32        { return i.st.Gid }

func (i info) Mode() os.FileMode {
	mode := os.FileMode(i.st.Mode & 0o777)
	for _, b := range []struct {
		unix uint32
		mode os.FileMode
	}{{unix.S_ISUID, os.ModeSetuid}, {unix.S_ISGID, os.ModeSetgid}, {unix.S_ISVTX, os.ModeSticky}} {
		if i.st.Mode&b.unix != 0 {
			mode |= b.mode
		}
	}
	return mode | map[uint32]os.FileMode{
		unix.S_IFDIR: os.ModeDir, unix.S_IFLNK: os.ModeSymlink, unix.S_IFIFO: os.ModeNamedPipe, unix.S_IFSOCK: os.ModeSocket,
		unix.S_IFBLK: os.ModeDevice, unix.S_IFCHR: os.ModeDevice | os.ModeCharDevice,
	}[i.st.Mode&unix.S_IFMT]
}

func (i info) Extended() []sftp.StatExtended {
	s := vmm.FileStat{
		Nlink: uint64(i.st.Nlink), Blocks: uint64(i.st.Blocks), Rdev: i.st.Rdev,
		Atime: time.Unix(i.st.Atim.Unix()), Mtime: time.Unix(i.st.Mtim.Unix()), Ctime: time.Unix(i.st.Ctim.Unix()),
	}
	return []sftp.StatExtended{{ExtType: vmm.FilesStat, ExtData: string(s.Append(nil))}}
}

// ListAt makes the one file a list.
func (i info) ListAt(list []os.FileInfo, offset int64) (int, error) {
	if offset > 0 || len(list) == 0 {
		return 0, io.EOF
	}
	list[0] = i
	return 1, nil
}

// Lstat implements sftp.LstatFileLister.
func (f files) Lstat(r *sftp.Request) (sftp.ListerAt, error) {
	var i info
	err := f.with(r.Filepath, func(dir int, base string) (err error) {
		i, err = lstat(dir, base)
		return err
	})
	return i, err
}

// Filelist implements sftp.FileLister. That SSH_FXP_STAT follows no link either is what the host wants.
func (f files) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	if r.Method != "List" {
		return f.Lstat(r)
	}
	var l *lister
	err := f.with(r.Filepath, func(dir int, base string) error {
		fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			l = &lister{os.NewFile(uintptr(fd), r.Filepath)}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// lister is an open directory.
type lister struct{ dir *os.File }

// ListAt gives what comes next: SSH_FXP_READDIR knows no other offset.
func (l *lister) ListAt(list []os.FileInfo, _ int64) (int, error) {
	for {
		names, err := l.dir.Readdirnames(len(list))
		n := 0
		for _, name := range names {
			if i, err := lstat(int(l.dir.Fd()), name); err == nil { // else it was removed meanwhile
				list[n] = i
				n++
			}
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Close implements io.Closer.
func (l *lister) Close() error { return l.dir.Close() }

// Readlink implements sftp.ReadlinkFileLister.
func (f files) Readlink(name string) (target string, err error) {
	err = f.with(name, func(dir int, base string) error {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, base, buf)
		target = string(buf[:max(0, n)])
		return err
	})
	return target, err
}

// Fileread implements sftp.FileReader.
func (f files) Fileread(r *sftp.Request) (io.ReaderAt, error) { return f.OpenFile(r) }

// Filewrite implements sftp.FileWriter.
func (f files) Filewrite(r *sftp.Request) (io.WriterAt, error) { return f.OpenFile(r) }

// OpenFile implements sftp.OpenFileWriter. Only regular files are opened: opening others waits, or makes a device do something.
func (f files) OpenFile(r *sftp.Request) (sftp.WriterAtReaderAt, error) {
	p := r.Pflags()
	flags := unix.O_RDONLY
	switch {
	case p.Read && p.Write:
		flags = unix.O_RDWR
	case p.Write:
		flags = unix.O_WRONLY
	}
	for _, x := range []struct {
		set  bool
		flag int
	}{{p.Append, unix.O_APPEND}, {p.Creat, unix.O_CREAT}, {p.Trunc, unix.O_TRUNC}, {p.Creat && p.Excl, unix.O_EXCL}} {
		if x.set {
			flags |= x.flag
		}
	}
	mode := uint32(0o644)
	if len(r.Attrs) == 4 { // of which the mode is the only attribute
		mode = binary.BigEndian.Uint32([]byte(r.Attrs)) & 0o7777
	}
	var o *openFile
	err := f.with(r.Filepath, func(dir int, base string) error {
		i, err := lstat(dir, base)
		switch kind := i.st.Mode & unix.S_IFMT; {
		case err != nil && (err != unix.ENOENT || !p.Creat):
			return err
		case err != nil || kind == unix.S_IFREG:
		case kind == unix.S_IFDIR:
			return unix.EISDIR
		case kind == unix.S_IFLNK:
			return unix.ELOOP
		default:
			return unix.ENXIO
		}
		fd, oerr := unix.Openat(dir, base, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0o600)
		if oerr != nil {
			return oerr
		}
		o = &openFile{fd}
		if err != nil { // it is new, and its mode none of the process's umask
			return unix.Fchmod(fd, mode)
		}
		return nil
	})
	if err != nil {
		if o != nil {
			o.Close()
		}
		return nil, err
	}
	return o, nil
}

// openFile reads and writes without Go's poller: a file of /proc that would wait says EAGAIN.
type openFile struct{ fd int }

// ReadAt implements io.ReaderAt, but that it may give less.
func (o *openFile) ReadAt(p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(o.fd, p, off)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// WriteAt implements io.WriterAt.
func (o *openFile) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(o.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Close implements io.Closer.
func (o *openFile) Close() error { return unix.Close(o.fd) }

// Filecmd implements sftp.FileCmder.
func (f files) Filecmd(r *sftp.Request) error {
	switch r.Method {
	case "Setstat":
		return f.with(r.Filepath, func(dir int, base string) error { return setstat(dir, base, r.AttrFlags(), r.Attributes()) })
	case "Rename":
		return f.rename(r, unix.RENAME_NOREPLACE)
	case "Mkdir":
		return f.with(r.Filepath, func(dir int, base string) error { return unix.Mkdirat(dir, base, 0o755) })
	case "Rmdir":
		return f.with(r.Filepath, func(dir int, base string) error { return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR) })
	case "Remove":
		return f.with(r.Filepath, func(dir int, base string) error { return unix.Unlinkat(dir, base, 0) })
	case "Symlink":
		return f.with(r.Target, func(dir int, base string) error { return unix.Symlinkat(r.Filepath, dir, base) })
	case "Link":
		return f.pair(r, func(from int, old string, to int, name string) error { return unix.Linkat(from, old, to, name, 0) })
	}
	return sftp.ErrSSHFxOpUnsupported
}

// pair calls do with the directories of both names, open.
func (f files) pair(r *sftp.Request, do func(from int, old string, to int, name string) error) error {
	return f.with(r.Filepath, func(from int, old string) error {
		return f.with(r.Target, func(to int, name string) error { return do(from, old, to, name) })
	})
}

func (f files) rename(r *sftp.Request, flags uint) error {
	return f.pair(r, func(from int, old string, to int, name string) error {
		return unix.Renameat2(from, old, to, name, flags)
	})
}

// PosixRename implements sftp.PosixRenameFileCmder.
func (f files) PosixRename(r *sftp.Request) error { return f.rename(r, 0) }

// StatVFS implements sftp.StatVFSFileCmder.
func (f files) StatVFS(r *sftp.Request) (*sftp.StatVFS, error) {
	var st unix.Statfs_t
	err := f.with(r.Filepath, func(dir int, base string) error {
		fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Fstatfs(fd, &st)
	})
	if err != nil {
		return nil, err
	}
	return &sftp.StatVFS{
		Bsize: uint64(st.Bsize), Frsize: uint64(st.Frsize), Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail,
		Files: st.Files, Ffree: st.Ffree, Favail: st.Ffree, Namemax: uint64(st.Namelen),
	}, nil
}

// setstat changes a file, or a link itself: the size, then the owner, whose change takes setuid away, the mode and the times.
func setstat(dir int, base string, set sftp.FileAttrFlags, a *sftp.FileStat) error {
	if set.Size {
		if err := reopen(dir, base, unix.O_WRONLY, func(fd int) error { return unix.Ftruncate(fd, int64(a.Size)) }); err != nil {
			return err
		}
	}
	if set.UidGid {
		if err := unix.Fchownat(dir, base, int(int32(a.UID)), int(int32(a.GID)), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if set.Permissions {
		i, err := lstat(dir, base)
		if err == nil && i.st.Mode&unix.S_IFMT == unix.S_IFLNK {
			err = unix.EOPNOTSUPP
		}
		if err == nil {
			err = unix.Fchmodat(dir, base, a.Mode&0o7777, 0)
		}
		if err != nil {
			return err
		}
	}
	times := [2]int64{int64(a.Atime) * 1e9, int64(a.Mtime) * 1e9}
	sync := false
	for _, x := range a.Extended {
		switch x.ExtType {
		case vmm.FilesTimes:
			set.Acmodtime = vmm.ParseFileInts(x.ExtData, times[:])
		case vmm.FilesSync:
			sync = true
		}
	}
	if set.Acmodtime {
		if err := unix.UtimesNanoAt(dir, base, []unix.Timespec{timespec(times[0]), timespec(times[1])}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if sync {
		return reopen(dir, base, unix.O_RDONLY, unix.Fsync)
	}
	return nil
}

func timespec(n int64) unix.Timespec {
	switch n {
	case vmm.TimeOmit:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case vmm.TimeNow:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.NsecToTimespec(n)
}

// reopen calls do with a regular file or a directory, open.
func reopen(dir int, base string, flags int, do func(fd int) error) error {
	i, err := lstat(dir, base)
	if err != nil {
		return err
	}
	if kind := i.st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return unix.EINVAL
	}
	fd, err := unix.Openat(dir, base, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd)
}
