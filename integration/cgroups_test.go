package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/host"
	"banger/vmm/cgroup"
)

// mountCgroups mounts the host's cgroups again, which "ip netns exec" has hidden with all of /sys.
// The parent of this process has them.
func mountCgroups() error {
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", os.Getppid()))
	if err != nil {
		return err
	}
	const root = "/sys/fs/cgroup"
	for _, m := range host.Mounts(info) {
		if m.Root != "/" || !strings.HasPrefix(m.FSType, "cgroup") {
			continue
		}
		rel, err := filepath.Rel(root, m.Mountpoint)
		if err != nil || strings.HasPrefix(rel, "..") {
			continue
		}
		var st unix.Statfs_t
		if rel != "." && unix.Statfs(root, &st) == nil && st.Type != unix.TMPFS_MAGIC {
			if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(m.Mountpoint, 0o755); err != nil {
			return err
		}
		options := strings.TrimPrefix(strings.TrimPrefix(m.VFSOptions, "rw"), ",")
		if err := unix.Mount(m.Source, m.Mountpoint, m.FSType, 0, options); err != nil {
			return fmt.Errorf("cannot mount %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}

// removeGroups removes the cgroups that a daemon leaves whose VMs were killed after it.
func (d *daemon) removeGroups() {
	id, err := os.ReadFile(filepath.Join(d.state, "instance"))
	if err != nil {
		return
	}
	for _, l := range cgroup.Leftovers() {
		if l.Instance == strings.TrimSpace(string(id)) {
			_ = l.Remove()
		}
	}
}
