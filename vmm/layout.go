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

// In an earlier banger the whole directory of a VM belonged to the VM's user. Its files may be the
// work of a VMM that its guest has taken over, and that still runs.

// movingSuffix ends the name of a directory while it is changed.
const movingSuffix = ".moving"

// movedFiles are moved out of such a directory if they are of this kind. A file of another kind
// stays with the disks, where nothing uses it.
var movedFiles = []struct {
	name string
	kind uint32
}{
	{LogFile, unix.S_IFREG}, {ConsoleFile, unix.S_IFREG},
	// A VMM that runs listens on its sockets, whatever their names are.
	{"qmp", unix.S_IFSOCK}, {"agent", unix.S_IFSOCK}, {"console", unix.S_IFSOCK},
}

// isOld reports whether a directory has an earlier banger's layout. uid is the VM's user.
func isOld(dir string, uid int) bool {
	var st unix.Stat_t
	if unix.Lstat(dir, &st) != nil {
		return false
	}
	if uid >= 0 && int(st.Uid) != os.Geteuid() {
		return true // a directory of disks in it may be anybody's
	}
	return unix.Lstat(DisksDir(dir), &st) != nil
}

// renew changes a directory of an earlier banger: it becomes the directory of disks in a new one.
// After a crash the next call goes on. The VM may run: files that its VMM has open stay open.
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
		return os.Remove(moving) // a crash came before anything was moved
	}
	for _, f := range movedFiles {
		if err := moveFile(moving, f.name, f.kind); err != nil {
			return fmt.Errorf("cannot move %s out of %s: %w", f.name, DisksDir(moving), err)
		}
	}
	key := filepath.Join(moving, HostKeyFile)
	if err := sshkeys.MoveHostKey(DiskPath(moving, HostKeyFile), key); err != nil {
		return fmt.Errorf("cannot keep the ssh host key of %s: %w", moving, err)
	}
	_ = os.Remove(DiskPath(moving, DiskSeed)) // the next start makes it; a running VMM has it open
	return os.Rename(moving, dir)
}

// moveFile moves a file out of the directory of the disks, if it is of that kind and has one name,
// and makes the daemon its owner. It checks the file where nobody can exchange it any more.
func moveFile(dir, name string, kind uint32) error {
	path := filepath.Join(dir, name)
	err := os.Rename(DiskPath(dir, name), path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil // there is none
	}
	if st.Mode&unix.S_IFMT != kind || st.Nlink != 1 {
		return os.Rename(path, DiskPath(dir, name+"-"+uuid.NewString())) // no such file can exist
	}
	if err := os.Lchown(path, os.Geteuid(), os.Getegid()); err != nil {
		return err
	}
	return os.Chmod(path, 0o600)
}
