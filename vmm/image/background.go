package image

import (
	"os"
	"os/exec"

	"banger/internal/host"

	"golang.org/x/sys/unix"
)

// niceness of builds: what VMs and their readers need comes first.
const niceness = 15

// inBackground runs f, and the programs that it starts, at low priority.
func inBackground(f func() error) error {
	return host.OnOwnThread(func() error {
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), niceness) // of this thread only, setpriority(2)
		return f()
	})
}

// removeTree removes a directory and what is in it. Without root the remains of a Debian that was being put together belong to
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
