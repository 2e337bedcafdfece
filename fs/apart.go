package fs

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// apart calls f on a thread that nobody else uses, before or after, and that has ownFiles, and returns when f does. Whatever the daemon asks
// of its own mount is asked there.
func apart(f func()) error {
	done := make(chan error, 1)
	go func() { // waited for here
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		if unix.Gettid() == os.Getpid() {
			// The main thread's open files are what /proc/self/fd shows all threads: they
			// must stay everybody's. While this goroutine keeps it, another gets another.
			done <- apart(f)
			runtime.UnlockOSThread()
			return
		}
		err := ownFiles()
		if err == nil {
			f()
		}
		done <- err
	}()
	return <-done
}

// ownFiles gives the calling thread a table of open files of its own, without
// the connection to the kernel. A thread that waits for an answer of its own
// process cannot be killed; were it to hold the connection open, a daemon
// killed in that moment would never end, as only the connection's end frees
// the thread. The runtime's poller is kept: a locked thread may have to wake it.
func ownFiles() error {
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return fmt.Errorf("cannot unshare the table of open files: %w", err)
	}
	fds, err := os.ReadDir("/proc/thread-self/fd")
	if err != nil {
		return err
	}
	for _, e := range fds {
		target, err := os.Readlink("/proc/thread-self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(target, "anon_inode:[event") {
			continue
		}
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.Close(fd)
		}
	}
	return nil
}
