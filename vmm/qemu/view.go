package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"banger/internal/host"
	hostkvm "banger/internal/kvm"

	"golang.org/x/sys/unix"
)

// A view is a mount namespace with no more of the host than QEMU needs until its machine is made:
// its program and libraries, read-only. Each QEMU starts in a copy of it. When the machine is made
// and before its CPUs run, seal takes even that away: an empty directory is the root then.
//
// The view lives as long as its descriptor, and each copy as long as its QEMU. No other process has
// these mounts, and a daemon that dies leaves none. It is made anew when programs have replaced one
// of the loader's files, as ldconfig(8) does: the view has the file of before.
type view struct {
	program string

	mu    sync.Mutex    // guards the rest
	ns    *os.File      // of /proc/thread-self/ns/mnt
	shown []unix.Stat_t // of singleFiles
}

// Places in the view's root.
const (
	emptyDir   = "/empty" // the root after seal
	resolvConf = "/etc/resolv.conf"
)

// loadDirs are the directories from which programs are loaded. A link there is made anew.
var loadDirs = []string{"/usr", "/bin", "/lib", "/lib32", "/lib64", "/libx32",
	"/nix/store", "/gnu/store"}

// loadFiles are files that the loader reads.
var loadFiles = []string{"/etc/ld.so.cache", "/etc/ld.so.preload"}

// programDir returns the directory of a program that is in none of loadDirs, with its libraries.
func programDir(program string) string {
	for _, dir := range loadDirs {
		if strings.HasPrefix(program, dir+"/") {
			return ""
		}
	}
	dir := filepath.Dir(program)
	if up := filepath.Dir(dir); filepath.Base(dir) == "bin" && up != "/" {
		return up // with lib and share beside it
	}
	return dir
}

// newView makes the view of a program. Only root may; it needs CAP_SYS_ADMIN and CAP_SYS_CHROOT.
func newView(program string) (*view, error) {
	v := &view{program: program}
	if err := v.renew(); err != nil {
		return nil, err
	}
	return v, nil
}

// singleFiles returns the files that are bound one by one and that the host may replace: the
// loader's, and the device that KVM's modules make.
func singleFiles() []string { return append(slices.Clone(loadFiles), hostkvm.Device) }

// renew makes the view, if that is not done yet or its single files are others by now.
func (v *view) renew() error {
	files := singleFiles()
	now := make([]unix.Stat_t, len(files))
	same := v.ns != nil
	for i, path := range files {
		_ = unix.Stat(path, &now[i]) // what is not there has no inode
		same = same && v.shown[i].Ino == now[i].Ino && v.shown[i].Ctim == now[i].Ctim
	}
	if same {
		return nil
	}
	ns, err := makeView(v.program)
	if err != nil {
		return fmt.Errorf("cannot make a view of the file system for QEMU: %w", err)
	}
	v.ns.Close() // of nil, too
	v.ns, v.shown = ns, now
	return nil
}

// makeView returns the mount namespace of a new view.
func makeView(program string) (ns *os.File, err error) {
	err = host.OnOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		unix.Umask(0o022) // of this thread: VMs' users read the view
		// Nothing that is mounted here reaches the host.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return os.NewSyscallError("mount", err)
		}
		if err := buildView(program); err != nil {
			return err
		}
		ns, err = os.Open("/proc/thread-self/ns/mnt")
		return err
	})
	return ns, err
}

// viewRoot is where the view is put together. Nothing below it is needed meanwhile.
const viewRoot = "/sys"

// buildView makes the view in the calling thread's mount namespace and makes it the root.
func buildView(program string) error {
	if err := mountEmpty(viewRoot); err != nil {
		return err
	}
	dirs := slices.Clone(loadDirs)
	if dir := programDir(program); dir != "" {
		dirs = append(dirs, dir)
	}
	for _, path := range slices.Concat(dirs, loadFiles) {
		if err := show(path, unix.MOUNT_ATTR_NODEV); err != nil {
			return err
		}
	}
	for _, path := range []string{"/dev/null", "/dev/urandom", hostkvm.Device} {
		if err := show(path, unix.MOUNT_ATTR_NOEXEC); err != nil {
			return err
		}
	}
	empty := viewRoot + emptyDir
	if err := errors.Join(mountProc(viewRoot+"/proc"), os.Mkdir(empty, 0o755)); err != nil {
		return err
	}
	if err := errors.Join(mountEmpty(empty), readOnly(empty), readOnly(viewRoot)); err != nil {
		return err
	}
	return enterRoot(viewRoot)
}

func mountEmpty(dir string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	err := unix.Mount("tmpfs", dir, "tmpfs", flags, "mode=0755,size=1m")
	return wrap("mount a tmpfs on", dir, err)
}

func readOnly(dir string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RDONLY
	err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|flags, "")
	return wrap("make read-only", dir, err)
}

func wrap(what, path string, err error) error {
	if err != nil {
		return fmt.Errorf("cannot %s %s: %w", what, path, err)
	}
	return nil
}

// show binds a file or a directory of the host into the view, with these attributes beside
// read-only and nosuid. It makes a symbolic link anew, and skips what the host lacks.
func show(path string, attributes uint64) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	target := viewRoot + path
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(path)
		if err == nil {
			err = os.Symlink(to, target)
		}
		return err
	}
	if info.IsDir() {
		err = os.Mkdir(target, 0o755)
	} else {
		err = os.WriteFile(target, nil, 0o444)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(path, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return wrap("bind", path, err)
	}
	attr := unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | attributes,
	}
	err = unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &attr)
	return wrap("make read-only", path, err)
}

// mountProc mounts a /proc in which a process sees itself only: QEMU opens kernels by it. Where the
// kernel refuses a new one, as in some containers, the host's own serves.
func mountProc(dir string) error {
	if err := os.Mkdir(dir, 0o555); err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RDONLY
	if unix.Mount("proc", dir, "proc", flags, "hidepid=invisible,subset=pid") == nil {
		return nil
	}
	if err := os.Remove(dir); err != nil {
		return err
	}
	return show("/proc", unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

// enterRoot makes the mount at dir the root of all that have the present one, and detaches that
// (pivot_root(2) describes these steps).
func enterRoot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return wrap("enter", dir, err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return wrap("make the root of", dir, err)
	}
	return wrap("detach", "the old root", unix.Unmount(".", unix.MNT_DETACH))
}

// enter moves the calling thread, which OnOwnThread made, into namespaces of its own: a copy of the
// view, no IPC, another name of the host and, unless the network is the host's, an empty network. A
// process that asks for names finds resolver as its resolv.conf(5) after seal.
func (v *view) enter(hostNetwork bool, resolver []byte) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	v.mu.Lock()
	err := v.renew()
	if err == nil {
		err = os.NewSyscallError("setns", unix.Setns(int(v.ns.Fd()), unix.CLONE_NEWNS))
	}
	v.mu.Unlock()
	if err != nil {
		return err
	}
	flags := unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	if !hostNetwork {
		flags |= unix.CLONE_NEWNET
	}
	if err := unix.Unshare(flags); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if resolver != nil {
		if err := showResolver(resolver); err != nil {
			return err
		}
	}
	return os.NewSyscallError("sethostname", unix.Sethostname([]byte("vmm")))
}

// seal makes an empty directory the root of a process that started in a copy of the view. From then
// on no path leads it anywhere. What it has mapped or open stays.
func (*view) seal(p *process) error {
	err := host.OnOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := p.enterMounts(); err != nil {
			return err
		}
		return enterRoot(emptyDir)
	})
	if err != nil {
		return fmt.Errorf("cannot take QEMU's view of the file system away: %w", err)
	}
	return nil
}

// showResolver covers the empty directory by one with a resolv.conf.
func showResolver(text []byte) error {
	unix.Umask(0o022) // of this thread, until its end
	if err := mountEmpty(emptyDir); err != nil {
		return err
	}
	path := emptyDir + resolvConf
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, text, 0o444); err != nil {
		return err
	}
	return readOnly(emptyDir)
}
