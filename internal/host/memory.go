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
	groups, _ := os.ReadFile(filepath.Join(proc, "self", "cgroup"))
	for _, m := range Mounts(mounts) {
		controller, file := "", "memory.max"
		switch {
		case m.FSType == "cgroup2":
		case m.FSType == "cgroup" && slices.Contains(strings.Split(m.VFSOptions, ","), "memory"):
			controller, file = "memory", "memory.limit_in_bytes"
		default:
			continue
		}
		for _, dir := range groupsAbove(m, groups, controller) {
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

// groupsAbove returns the directories of a process's cgroup and of those above it, as far as the
// mount shows them. groups is the process's file cgroup.
func groupsAbove(m *mountinfo.Info, groups []byte, controller string) []string {
	for line := range bytes.Lines(groups) {
		parts := strings.SplitN(strings.TrimSpace(string(line)), ":", 3)
		if len(parts) != 3 || !slices.Contains(strings.Split(parts[1], ","), controller) {
			continue
		}
		rel, err := filepath.Rel(m.Root, parts[2])
		if err != nil || !filepath.IsLocal(rel) {
			return nil
		}
		dirs := []string{m.Mountpoint}
		for _, name := range strings.Split(rel, "/") {
			dirs = append(dirs, filepath.Join(dirs[len(dirs)-1], name))
		}
		return dirs
	}
	return nil
}
