package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// imageSysctls are the settings of the kernel that dockerd gives every container with a network of
// its own (moby, daemon/oci_linux.go, WithSysctls). They let a user other than root listen on
// port 80 and send pings.
var imageSysctls = []struct{ path, value string }{
	{"net/ipv4/ip_unprivileged_port_start", "0"},
	{"net/ipv4/ping_group_range", "0 2147483647"},
}

// setSysctls writes imageSysctls below root, which is /proc/sys. A kernel may lack one.
func setSysctls(root string) error {
	for _, s := range imageSysctls {
		f, err := os.OpenFile(filepath.Join(root, s.path), os.O_WRONLY, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = f.WriteString(s.value)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("cannot set %s: %w", s.path, err)
		}
	}
	return nil
}

// mountQueues mounts the file system of POSIX message queues at path, as runc does (runc,
// libcontainer/specconv, Example). A kernel may lack it.
func mountQueues(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	err := unix.Mount("mqueue", path, "mqueue", flags, "")
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("cannot mount %s: %w", path, err)
	}
	return nil
}
