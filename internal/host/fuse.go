package host

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// fuseDevice is the number of /dev/fuse (Documentation/admin-guide/devices.txt of Linux), whatever
// the name of the node.
var fuseDevice = unix.Mkdev(10, 229)

// CloseFUSEOnExec keeps this process's connections to the kernel's FUSE from the programs that it
// starts: go-fuse opens /dev/fuse without O_CLOEXEC. The caller holds syscall.ForkLock for reading
// from before go-fuse opens it. A program that inherits the connection keeps the mount of a dead
// process, and waits for ever for that mount's answer.
func CloseFUSEOnExec() {
	fds, _ := OpenFiles()
	for _, fd := range fds {
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == fuseDevice {
			unix.CloseOnExec(fd)
		}
	}
}

// OpenFiles returns the open files of the calling thread.
func OpenFiles() ([]int, error) {
	entries, err := os.ReadDir("/proc/thread-self/fd")
	var fds []int
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil {
			fds = append(fds, fd)
		}
	}
	return fds, err
}
