package image

import (
	"os"
	"os/exec"

	"banger/internal/host"

	"golang.org/x/sys/unix"
)

// niceness of builds: VMs and their readers go first.
const niceness = 15

// inBackground runs f and its programs at low priority.
func inBackground(f func() error) error {
	return host.OnOwnThread(func() error {
		// Of this thread only, see setpriority(2).
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), niceness)
		return f()
	})
}

// removeTree removes a directory with its contents. Without root the remains of a Debian belong to
// other users of this user's namespace, and only mmdebstrap can remove them.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || os.Getuid() == 0 {
		return err
	}
	if exec.Command("mmdebstrap", "--unshare-helper", "rm", "-rf", "--", dir).Run() != nil {
		return err
	}
	return os.RemoveAll(dir)
}
