package image

import (
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// niceness of builds: what VMs and their readers need comes first.
const niceness = 15

// onOwnThread runs f on a thread that nobody uses before or after, so that f may change what belongs to the thread: whose
// rights it has, its priority. The thread ends with f. It is never the main one, whose /proc files stand for the process.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good
		if unix.Gettid() != os.Getpid() {
			done <- f()
			return
		}
		// While this goroutine has the main thread, another gets another.
		done <- onOwnThread(f)
		runtime.UnlockOSThread()
	}()
	return <-done
}

// inBackground runs f, and the programs that it starts, at low priority.
func inBackground(f func() error) error {
	return onOwnThread(func() error {
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), niceness) // of this thread only, setpriority(2)
		return f()
	})
}

// withoutPrivileges runs f as inBackground does. Programs that it starts gain no rights from what
// they execute (no_new_privs of prctl(2)).
func withoutPrivileges(f func() error) error {
	return inBackground(func() error {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil { // of this thread and its children
			return err
		}
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
