package host

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// OnOwnThread runs f on a thread that nobody uses before or after, so that f may change what belongs
// to the thread: whose rights it has, its priority. The thread ends with f. It is never the main one,
// whose /proc files stand for the process.
func OnOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good
		if unix.Gettid() != os.Getpid() {
			done <- f()
			return
		}
		// While this goroutine has the main thread, another gets another.
		done <- OnOwnThread(f)
		runtime.UnlockOSThread()
	}()
	return <-done
}

// DropCapabilities takes all capabilities from the calling thread, for good: it is called on a thread
// of its own. The thread keeps its uid, so that no user may signal or trace it.
func DropCapabilities() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&head, &none[0]) // of this thread only, unlike setuid(2) of package syscall
}
