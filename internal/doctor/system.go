package doctor

import (
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// userName returns the name of this process's user, or the uid as a number.
func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return strconv.Itoa(os.Getuid())
}

// openBoth opens a file for reading and writing, and closes it.
func openBoth(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err == nil {
		f.Close()
	}
	return err
}

// dial connects to a Unix socket.
func dial(socket string) error {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err == nil {
		conn.Close()
	}
	return err
}

// free returns how many bytes this user may write below a path, or below the directory above it
// that exists.
func free(path string) (uint64, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		if err == nil {
			blocks := st.Bavail
			if os.Getuid() == 0 {
				blocks = st.Bfree
			}
			return blocks * uint64(st.Bsize), nil
		}
		parent := filepath.Dir(path)
		if err != unix.ENOENT || parent == path {
			return 0, os.NewSyscallError("statfs", err)
		}
		path = parent
	}
}
