package host

import "strings"

// CgroupMounts returns the mount points of the cgroup hierarchies (cgroups(7)) in a mountinfo file
// by controller; "" is version 2. It leaves out mounts of a part of a hierarchy.
func CgroupMounts(mountinfo []byte) map[string]string {
	mounts := map[string]string{}
	for _, m := range Mounts(mountinfo) {
		if m.Root != "/" {
			continue
		}
		switch m.FSType {
		case "cgroup2":
			mounts[""] = m.Mountpoint
		case "cgroup":
			for _, option := range strings.Split(m.VFSOptions, ",") {
				mounts[option] = m.Mountpoint
			}
		}
	}
	return mounts
}

// ParseCgroup returns a process's groups by controller from /proc/PID/cgroup; "" is version 2. It
// leaves out paths that leave the namespace's root.
func ParseCgroup(text []byte) map[string]string {
	groups := map[string]string{}
	for _, line := range strings.Split(string(text), "\n") {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") ||
			strings.HasPrefix(parts[2], "/..") {
			continue
		}
		for _, controller := range strings.Split(parts[1], ",") {
			groups[controller] = parts[2]
		}
	}
	return groups
}
