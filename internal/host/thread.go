package host

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// OnOwnThread runs f on a new thread that ends with f. There f may change what belongs to a thread:
// rights, priority, the table of open files. It is never the main thread, whose files in /proc
// stand for the whole process.
func OnOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good
		if unix.Gettid() != os.Getpid() {
			done <- f()
			return
		}
		// While this goroutine holds the main thread, the next one runs on another.
		done <- OnOwnThread(f)
		runtime.UnlockOSThread()
	}()
	return <-done
}

// DropCapabilities removes all capabilities of the calling thread, which OnOwnThread made, for
// good. The thread keeps its uid, so that no user may signal or trace it.
func DropCapabilities() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&head, &none[0]) // of this thread only, unlike setuid(2) of package syscall
}
