package host

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Memory returns the memory that this process and its children may have, in bytes: MemTotal of
// /proc/meminfo (proc(5)), or the lowest limit of the process's own cgroup and those above it
// (cgroups(7)). proc is the directory /proc.
func Memory(proc string) (int64, error) {
	text, err := os.ReadFile(filepath.Join(proc, "meminfo"))
	if err != nil {
		return 0, err
	}
	least := int64(0)
	for line := range bytes.Lines(text) {
		if f := strings.Fields(string(line)); len(f) >= 2 && f[0] == "MemTotal:" {
			n, err := strconv.ParseInt(f[1], 10, 53)
			if err != nil {
				return 0, err
			}
			least = n << 10
		}
	}
	if least == 0 {
		return 0, fmt.Errorf("%s has no MemTotal", filepath.Join(proc, "meminfo"))
	}
	mounts, _ := os.ReadFile(filepath.Join(proc, "self", "mountinfo")) // without one, no limits
	text, _ = os.ReadFile(filepath.Join(proc, "self", "cgroup"))
	groups := ParseCgroup(text)
	for _, m := range Mounts(mounts) {
		controller, file := "", "memory.max"
		switch {
		case m.FSType == "cgroup2":
		case m.FSType == "cgroup" && slices.Contains(strings.Split(m.VFSOptions, ","), "memory"):
			controller, file = "memory", "memory.limit_in_bytes"
		default:
			continue
		}
		group, in := groups[controller]
		if !in {
			continue
		}
		for _, dir := range groupsAbove(m, group) {
			// Without a limit the file is missing, or has the word max or a huge number.
			text, _ := os.ReadFile(filepath.Join(dir, file))
			n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			if err == nil {
				least = min(least, n)
			}
		}
	}
	return least, nil
}

// groupsAbove returns the directories of a cgroup and of those above it, as far as the mount shows
// them.
func groupsAbove(m *mountinfo.Info, group string) []string {
	rel, err := filepath.Rel(m.Root, group)
	if err != nil || !filepath.IsLocal(rel) {
		return nil
	}
	dirs := []string{m.Mountpoint}
	for _, name := range strings.Split(rel, "/") {
		dirs = append(dirs, filepath.Join(dirs[len(dirs)-1], name))
	}
	return dirs
}
