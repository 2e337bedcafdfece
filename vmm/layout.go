package vmm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"banger/internal/sshkeys"
)

// An earlier banger gave a VM's user the whole of the VM's directory. What is found there may be
// the work of a VMM that its guest has taken over, and that still runs.

// movingSuffix is of the name of a directory while it is changed.
const movingSuffix = ".moving"

// takenFiles are what is taken out of such a directory, as the kind of file that it has to be.
// What is of another kind stays with the disks, where nobody looks at it.
var takenFiles = []struct {
	name string
	kind uint32
}{
	{LogFile, unix.S_IFREG}, {ConsoleFile, unix.S_IFREG},
	// The sockets of a VMM that runs: it listens on them, whatever their names are.
	{"qmp", unix.S_IFSOCK}, {"agent", unix.S_IFSOCK}, {"console", unix.S_IFSOCK},
}

// isOld reports whether the directory of a VM whose user is uid is an earlier banger's.
func isOld(dir string, uid int) bool {
	var st unix.Stat_t
	if unix.Lstat(dir, &st) != nil {
		return false
	}
	if uid >= 0 && int(st.Uid) != os.Geteuid() {
		return true // also if there is a directory of that name in it: anybody's
	}
	return unix.Lstat(DisksDir(dir), &st) != nil
}

// renew makes a directory of an earlier banger one of this: it becomes that of the disks, in a
// new one. A crash leaves it as it was, or under a name that is found again. The VM may run:
// what its VMM has open stays what it is.
func renew(dir string, uid int) error {
	moving := dir + movingSuffix
	if isOld(dir, uid) {
		if err := os.Mkdir(moving, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := os.Rename(dir, DisksDir(moving)); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(moving); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if _, err := os.Lstat(DisksDir(moving)); errors.Is(err, os.ErrNotExist) {
		return os.Remove(moving) // of a crash before anything was moved
	}
	for _, f := range takenFiles {
		if err := takeFile(moving, f.name, f.kind); err != nil {
			return fmt.Errorf("cannot take %s out of %s: %w", f.name, DisksDir(moving), err)
		}
	}
	if err := sshkeys.MoveHostKey(DiskPath(moving, HostKeyFile), filepath.Join(moving, HostKeyFile)); err != nil {
		return fmt.Errorf("cannot keep the ssh host key of %s: %w", moving, err)
	}
	_ = os.Remove(DiskPath(moving, DiskSeed)) // made anew; a VMM that has it open reads on
	return os.Rename(moving, dir)
}

// takeFile moves a file out of the directory of the disks, if it is of that kind and has one
// name, and makes it the daemon's. It is looked at where nobody can exchange it any more.
func takeFile(dir, name string, kind uint32) error {
	path := filepath.Join(dir, name)
	err := os.Rename(DiskPath(dir, name), path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil // there is none; or it was there already, after a crash
	}
	if st.Mode&unix.S_IFMT != kind || st.Nlink != 1 {
		return os.Rename(path, DiskPath(dir, name+"-"+uuid.NewString())) // a name that nobody has taken before
	}
	if err := os.Lchown(path, os.Geteuid(), os.Getegid()); err != nil {
		return err
	}
	return os.Chmod(path, 0o600)
}
