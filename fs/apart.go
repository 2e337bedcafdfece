package fs

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/host"
)

// apart runs f on a thread of its own that has its own table of open files, and returns when f
// does. The daemon uses its own mount on such threads only.
func apart(f func()) error {
	return host.OnOwnThread(func() error {
		err := ownFiles()
		if err == nil {
			f()
		}
		return err
	})
}

// ownFiles makes a table of open files for the calling thread, without the connection to the
// kernel. A thread that waits for an answer of its own process cannot be killed. Only the end of
// the connection frees it, so it must not keep the connection open itself: a daemon killed in that
// moment would never end. The runtime's poller stays: a locked thread may have to wake it.
func ownFiles() error {
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return fmt.Errorf("cannot unshare the table of open files: %w", err)
	}
	fds, err := host.OpenFiles()
	if err != nil {
		return err
	}
	for _, fd := range fds {
		target, err := os.Readlink(fmt.Sprintf("/proc/thread-self/fd/%d", fd))
		if err == nil && fd > 2 && !strings.HasPrefix(target, "anon_inode:[event") {
			unix.Close(fd)
		}
	}
	return nil
}
