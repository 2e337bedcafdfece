package host

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCloseOnExec opens the device by another name, as in a container that binds a node over it.
func TestCloseOnExec(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node")
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(fuseDevice)); err != nil {
		t.Skipf("only root makes devices: %v", err)
	}
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		t.Skipf("devices cannot be opened here: %v", err)
	}
	defer unix.Close(fd)
	CloseFUSEOnExec()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("a started program inherits the device: flags %#x, %v", flags, err)
	}
}
