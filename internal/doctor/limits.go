package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"banger/internal/host"
	"golang.org/x/sys/unix"
)

// controllers are those of the kernel that limit VMMs (cgroups(7)).
var controllers = []string{"cpu", "memory", "pids"}

// cgroup looks which limits VMs can have.
func (h *Host) cgroup(context.Context) finding {
	mounts := host.CgroupMounts([]byte(h.read("/proc/self/mountinfo")))
	mount, unified := mounts[""]
	systemd := h.exists("/run/systemd/system")
	group := host.ParseCgroup([]byte(h.read("/proc/self/cgroup")))[""]
	if systemd {
		group = "/"
		if h.UID != 0 {
			group = fmt.Sprintf("/user.slice/user-%d.slice/user@%[1]d.service", h.UID)
		}
	}
	dir := filepath.Join(mount, group)
	if unified && systemd && !h.exists(dir) {
		return warn(h.asRoot("loginctl enable-linger "+h.User),
			"systemd has no manager for this user: VMs have no limits")
	}
	there := strings.Fields(h.read(filepath.Join(dir, "cgroup.controllers")))
	if !unified || len(there) == 0 {
		return h.legacyCgroup(mounts)
	}
	missing := slices.DeleteFunc(slices.Clone(controllers), func(c string) bool {
		return slices.Contains(there, c)
	})
	by := "directories in " + dir
	if systemd {
		by = "systemd"
	}
	if len(missing) == 0 {
		return ok("version 2, with %s, by %s", strings.Join(controllers, ", "), by)
	}
	lacks := strings.Join(missing, ", ")
	if h.UID != 0 && systemd {
		return warn(h.asRoot(`sh -c 'mkdir -p /etc/systemd/system/user@.service.d && `+
			`printf "[Service]\nDelegate=cpu memory pids\n" `+
			`> /etc/systemd/system/user@.service.d/delegate.conf && systemctl daemon-reload', `+
			`and log in again`), "version 2, but this user has no %s: such limits are refused", lacks)
	}
	return warn("add cgroup_enable="+strings.Join(missing, ",")+" to the kernel's command line, "+
		"or start bangerd in a group that has them",
		"version 2 without %s: such limits are refused", lacks)
}

// legacyCgroup is cgroup on a host without version 2.
func (h *Host) legacyCgroup(mounts map[string]string) finding {
	var there []string
	for _, c := range controllers {
		if _, mounted := mounts[c]; mounted {
			there = append(there, c)
		}
	}
	const remedy = "add systemd.unified_cgroup_hierarchy=1 to the kernel's command line"
	switch {
	case len(there) == 0:
		return warn("mount -t cgroup2 cgroup2 /sys/fs/cgroup", "no cgroups: limits of VMs are refused")
	case h.UID != 0:
		return warn(remedy, "version 1, of which ordinary users have none: limits of VMs are refused")
	case len(there) < len(controllers):
		return warn(remedy, "version 1, with %s only: other limits are refused",
			strings.Join(there, ", "))
	}
	return ok("version 1, with %s", strings.Join(there, ", "))
}

// oom looks whether root's daemon may be the last process that the kernel kills for want of memory.
func (h *Host) oom(context.Context) finding {
	words := fields(h.read("/proc/self/status"), "CapEff:")
	if len(words) == 1 {
		set, err := strconv.ParseUint(words[0], 16, 64)
		if err == nil && set&(1<<unix.CAP_SYS_RESOURCE) != 0 {
			return ok("the daemon may lower its oom_score_adj")
		}
	}
	return warn("run bangerd with CAP_SYS_RESOURCE",
		"the daemon may not lower its oom_score_adj: the kernel may kill it before VMs")
}

// hugePages looks whether guests' memory may have large pages. It is anonymous memory, for which
// QEMU asks with madvise(2).
func (h *Host) hugePages(context.Context) finding {
	const dir = "/sys/kernel/mm/transparent_hugepage/"
	anonymous, shared := chosen(h.read(dir+"enabled")), chosen(h.read(dir+"shmem_enabled"))
	if anonymous == "" {
		return warn("boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
			"the kernel has no transparent huge pages: guests run a little slower")
	}
	if anonymous == "never" {
		return warn(h.asRoot(`sh -c "echo madvise > `+dir+`enabled"`),
			"transparent huge pages are off: guests run a little slower")
	}
	if shared == "" {
		shared = "never"
	}
	return ok("%s for guests' memory, %s for shared memory, which guests do not use",
		anonymous, shared)
}

// chosen returns the word in brackets.
func chosen(text string) string {
	_, rest, _ := strings.Cut(text, "[")
	word, _, _ := strings.Cut(rest, "]")
	return strings.TrimSpace(word)
}
