package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Landlock is what the calling thread, and the programs that it starts, may still open and reach
// (Documentation/userspace-api/landlock.rst of Linux). What is open already stays usable.
type Landlock struct {
	Open []LandlockRule // all else cannot be opened, made, moved or removed

	// BindTCP and ConnectTCP permit TCP ports. They are refused otherwise.
	BindTCP, ConnectTCP bool
}

// LandlockRule permits some ways to open a file, or what is beneath a directory. A path that does
// not exist permits nothing.
type LandlockRule struct {
	Path   string
	File   *os.File // in place of the path
	Rights uint64   // such as LandlockRead
}

// Rights of a LandlockRule.
const (
	LandlockRead   = unix.LANDLOCK_ACCESS_FS_READ_FILE
	LandlockLoad   = LandlockRead | unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_EXECUTE
	LandlockDevice = LandlockRead | unix.LANDLOCK_ACCESS_FS_WRITE_FILE |
		unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
)

const (
	// landlockFiles are all rights of files that the newest kernel can refuse.
	landlockFiles = unix.LANDLOCK_ACCESS_FS_RESOLVE_UNIX<<1 - 1
	// landlockOfFile holds the rights that a rule for a file may have; others are a directory's.
	landlockOfFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE |
		unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE |
		unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
)

// landlockAttr is struct landlock_ruleset_attr up to version 6 of the interface.
type landlockAttr struct{ files, net, scope uint64 }

// LandlockABI returns the version of the kernel's interface, and 0 with the reason if it has none.
func LandlockABI() (int, error) {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0,
		unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch errno {
	case 0:
		return int(v), nil
	case unix.ENOSYS:
		return 0, errors.New("the kernel has no Landlock: this needs Linux 5.13")
	case unix.EOPNOTSUPP:
		return 0, errors.New("the kernel runs without Landlock: name it in the boot parameter lsm")
	}
	return 0, fmt.Errorf("cannot ask for Landlock: %w", errno)
}

// Restrict applies to the calling thread, which OnOwnThread made, for good. It sets no_new_privs,
// without which the kernel permits it to CAP_SYS_ADMIN alone.
func (l Landlock) Restrict() error {
	all := landlockHandled()
	if l.BindTCP {
		all.net &^= unix.LANDLOCK_ACCESS_NET_BIND_TCP
	}
	if l.ConnectTCP {
		all.net &^= unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	rules, err := all.ruleset()
	if err != nil {
		return err
	}
	defer unix.Close(rules)
	for _, r := range l.Open {
		if err := r.add(rules, all.files); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot permit %s: %w", r.name(), err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	_, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(rules), 0, 0)
	if errno != 0 {
		return os.NewSyscallError("landlock_restrict_self", errno)
	}
	return nil
}

// ruleset makes an empty set of rules, which refuses all of a.
func (a landlockAttr) ruleset() (int, error) {
	size := unsafe.Sizeof(a)
	switch { // an older kernel knows a shorter struct
	case a.scope != 0:
	case a.net != 0:
		size = unsafe.Offsetof(a.scope)
	default:
		size = unsafe.Offsetof(a.net)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET,
		uintptr(unsafe.Pointer(&a)), size, 0)
	if errno != 0 {
		return -1, os.NewSyscallError("landlock_create_ruleset", errno)
	}
	return int(fd), nil
}

// handles reports whether the kernel can refuse a.
func (a landlockAttr) handles() bool {
	fd, err := a.ruleset()
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// landlockHandled returns all that this kernel can refuse. It asks for each, so that no list of
// versions has to be kept.
var landlockHandled = sync.OnceValue(func() (a landlockAttr) {
	for bit := uint64(1); bit <= landlockFiles; bit <<= 1 {
		if (landlockAttr{files: bit}).handles() {
			a.files |= bit
		}
	}
	for _, bit := range []uint64{
		unix.LANDLOCK_ACCESS_NET_BIND_TCP, unix.LANDLOCK_ACCESS_NET_CONNECT_TCP,
	} {
		if (landlockAttr{net: bit}).handles() {
			a.net |= bit
		}
	}
	for _, bit := range []uint64{
		unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, unix.LANDLOCK_SCOPE_SIGNAL,
	} {
		if (landlockAttr{scope: bit}).handles() {
			a.scope |= bit
		}
	}
	return a
})

func (r LandlockRule) name() string {
	if r.File != nil {
		return r.File.Name()
	}
	return r.Path
}

// add adds the rule to a set that handles these rights.
func (r LandlockRule) add(rules int, handled uint64) error {
	var fd int
	if r.File != nil {
		fd = int(r.File.Fd())
	} else {
		var err error
		if fd, err = unix.Open(r.Path, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	rights := r.Rights & handled
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= landlockOfFile
	}
	attr := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rules),
		unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&attr)), 0, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("landlock_add_rule", errno)
	}
	return nil
}
