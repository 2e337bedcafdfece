package image

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"banger/internal/host"
	"banger/vmm"

	"golang.org/x/sys/unix"
)

// maxSymlinks bounds the symbolic links of a path, as the kernel does (path_resolution(7)).
const maxSymlinks = 40

// walk follows a user's path, one name at a time. It checks the kind of each file system before it
// asks it anything: one that a user serves may never answer, and a thread that waits for it cannot
// be killed. The calls have the rights of the thread.
type walk struct {
	by    vmm.Caller
	at    *os.File // O_PATH; the place so far
	left  []string // the rest of the path
	links int
}

// walkTo returns the end of a path as an O_PATH descriptor, which the caller closes.
func walkTo(by vmm.Caller, path string) (*os.File, error) {
	w := walk{by: by}
	err := w.follow(path)
	for err == nil && len(w.left) > 0 {
		err = w.step()
	}
	if err != nil {
		w.at.Close() // of nil, too
		return nil, err
	}
	return w.at, nil
}

// follow continues with a path, which may be absolute.
func (w *walk) follow(path string) error {
	if path == "" {
		return unix.ENOENT
	}
	w.left = append(strings.Split(path, "/"), w.left...)
	switch {
	case strings.HasPrefix(path, "/"):
		return w.begin(w.by.Root)
	case w.at == nil:
		return w.begin(w.by.Dir)
	}
	return nil
}

// begin goes to the caller's root or working directory.
func (w *walk) begin(dir *os.File) error {
	if dir == nil || w.by.Root == nil {
		return fmt.Errorf("this daemon cannot see the process that wrote the path: %w", vmm.ErrInvalid)
	}
	if err := errors.Join(checkMount(dir), checkMount(w.by.Root)); err != nil {
		return err
	}
	fd, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	w.goTo(os.NewFile(uintptr(fd), dir.Name()))
	return nil
}

func (w *walk) goTo(f *os.File) {
	w.at.Close() // of nil, too
	w.at = f
}

// step follows the next name.
func (w *walk) step() error {
	name := w.left[0]
	w.left = w.left[1:]
	if name == ".." {
		top, err := sameFile(w.at, w.by.Root)
		if err != nil {
			return err
		}
		if top {
			name = "."
		}
	}
	if name == "" {
		name = "." // which only a directory has
	}
	next, err := w.open(name)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(next.Fd()), &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK {
		w.goTo(next)
		return nil
	}
	defer next.Close()
	if err != nil {
		return err
	}
	if w.links++; w.links > maxSymlinks {
		return unix.ELOOP
	}
	if err := w.mayFollow(&st); err != nil {
		return err
	}
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(next.Fd()), "", target)
	if err != nil {
		return err
	}
	return w.follow(string(target[:n]))
}

// open opens a name in the current directory with O_PATH. It checks the file system if the name
// leads to another one.
func (w *walk) open(name string) (*os.File, error) {
	how := unix.OpenHow{
		// O_DIRECTORY is tried first, because it triggers automatic mounts (autofs(5)).
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_DIRECTORY,
		Resolve: unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		f, err := openat2(w.at, name, &how)
		switch {
		case err == unix.ENOTDIR && how.Flags&unix.O_DIRECTORY != 0:
			how.Flags &^= unix.O_DIRECTORY
		case err == unix.EXDEV && how.Resolve&unix.RESOLVE_NO_XDEV != 0:
			how.Resolve &^= unix.RESOLVE_NO_XDEV
		case err != nil:
			return nil, err
		case how.Resolve&unix.RESOLVE_NO_XDEV != 0:
			return f, nil
		default:
			if err := checkMount(f); err != nil {
				f.Close()
				return nil, err
			}
			return f, nil
		}
	}
}

// mayFollow applies the rule of fs.protected_symlinks (proc_sys_fs(5)): in a directory such as /tmp
// no user follows another user's link.
func (w *walk) mayFollow(link *unix.Stat_t) error {
	const shared = unix.S_ISVTX | 0o002
	var dir unix.Stat_t
	if err := unix.Fstat(int(w.at.Fd()), &dir); err != nil {
		return err
	}
	if link.Uid == w.by.UID || dir.Mode&shared != shared || dir.Uid == link.Uid {
		return nil
	}
	return unix.EACCES
}

func sameFile(a, b *os.File) (bool, error) {
	var x, y unix.Stat_t
	if err := errors.Join(unix.Fstat(int(a.Fd()), &x), unix.Fstat(int(b.Fd()), &y)); err != nil {
		return false, err
	}
	return x.Dev == y.Dev && x.Ino == y.Ino, nil
}

func openat2(dir *os.File, name string, how *unix.OpenHow) (*os.File, error) {
	for {
		fd, err := unix.Openat2(int(dir.Fd()), name, how)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), name), nil
		case unix.EINTR:
		default:
			return nil, err
		}
	}
}

// checkMount refuses files on a file system that may not answer, or that would show this process
// instead of the caller. It does not ask the file system itself.
func checkMount(f *os.File) error {
	info, err := os.ReadFile(fmt.Sprintf("/proc/thread-self/fdinfo/%d", f.Fd()))
	if err != nil {
		return err
	}
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	m := findMount(mounts, func(m *mount) bool { return m.id == mountID(info) })
	if m == nil { // of another mount namespace
		var st unix.Statx_t
		const flags = unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC
		if err := unix.Statx(int(f.Fd()), "", flags, 0, &st); err != nil {
			return err
		}
		device := fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor)
		m = findMount(mounts, func(m *mount) bool { return m.device == device })
	}
	if m == nil {
		return fmt.Errorf("it is on a file system that this daemon does not see: %w", vmm.ErrInvalid)
	}
	return m.check()
}

// mount is a line of mountinfo (proc_pid_mountinfo(5)).
type mount struct{ id, device, kind, source, options string }

// mountID returns the mount that a descriptor's fdinfo names.
func mountID(fdinfo []byte) string {
	for lines := bufio.NewScanner(bytes.NewReader(fdinfo)); lines.Scan(); {
		if id, ok := strings.CutPrefix(lines.Text(), "mnt_id:"); ok {
			return strings.TrimSpace(id)
		}
	}
	return ""
}

// findMount returns the first mount that fits, nil if none does.
func findMount(mountinfo []byte, fits func(*mount) bool) *mount {
	for _, i := range host.Mounts(mountinfo) {
		m := &mount{
			strconv.Itoa(i.ID), fmt.Sprintf("%d:%d", i.Major, i.Minor), i.FSType, i.Source, i.VFSOptions,
		}
		if fits(m) {
			return m
		}
	}
	return nil
}

// check refuses banger's own tree, which would wait for this daemon, FUSE of users other than root
// and the daemon's, and proc, where `self` would be the daemon.
func (m *mount) check() error {
	switch {
	case m.kind == "proc":
		return fmt.Errorf("it is on a proc file system: %w", vmm.ErrInvalid)
	case m.kind == "fuse.banger", m.kind == "fuse" && m.source == "banger":
		return fmt.Errorf("it is on a file system that banger serves: %w", vmm.ErrInvalid)
	case m.kind != "fuse" && m.kind != "fuseblk" && !strings.HasPrefix(m.kind, "fuse."):
		return nil
	}
	for option := range strings.SplitSeq(m.options, ",") {
		id, ok := strings.CutPrefix(option, "user_id=")
		if ok && (id == "0" || id == strconv.Itoa(os.Getuid())) {
			return nil
		}
	}
	return fmt.Errorf("it is on a %s file system that a user serves and that may never answer; "+
		"copy it elsewhere: %w", m.kind, vmm.ErrInvalid)
}
