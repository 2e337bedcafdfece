package collector

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"

	"banger/internal/host"
)

// cgroups holds the mount points of the host's hierarchies and the daemon's own groups
// (cgroups(7)). Version 2, the controllers of version 1, both or neither may be mounted. Immutable.
type cgroups struct {
	mounts map[string]string // directory by controller; "" is version 2
	own    map[string]string // the daemon's group by controller
}

// findCgroups reads /proc/self/mountinfo and /proc/self/cgroup below proc.
func findCgroups(proc string) *cgroups {
	info, _ := os.ReadFile(filepath.Join(proc, "self", "mountinfo")) // nothing mounted, then
	text, _ := os.ReadFile(filepath.Join(proc, "self", "cgroup"))
	return &cgroups{mounts: host.CgroupMounts(info), own: host.ParseCgroup(text)}
}

// cgroup is a group that is a VM's own: its files, kept open. A nil cgroup has no figures.
type cgroup struct {
	cpuFile, memoryFile *os.File // nil where the controller is missing
	unified             bool     // cpuFile is version 2's cpu.stat, in microseconds
}

// ownGroup returns the group of the process whose file cgroup is at path, nil if the daemon is in
// it too.
func (g *cgroups) ownGroup(path string) *cgroup {
	if len(g.mounts) == 0 {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	groups := host.ParseCgroup(text)
	open := func(controller, file string) *os.File {
		mount, mounted := g.mounts[controller]
		group, in := groups[controller]
		if !mounted || !in || group == g.own[controller] {
			return nil
		}
		f, _ := os.Open(filepath.Join(mount, group, file)) // the controller is not enabled there
		return f
	}
	c := &cgroup{cpuFile: open("", "cpu.stat"), memoryFile: open("", "memory.current")}
	c.unified = c.cpuFile != nil
	if c.cpuFile == nil {
		c.cpuFile = open("cpuacct", "cpuacct.usage")
	}
	if c.memoryFile == nil {
		c.memoryFile = open("memory", "memory.usage_in_bytes")
	}
	if c.cpuFile == nil && c.memoryFile == nil {
		return nil
	}
	return c
}

// cpu returns the CPU time of all processes in the group, microseconds.
func (c *cgroup) cpu() (uint64, bool) {
	if c == nil {
		return 0, false
	}
	text := readFigure(c.cpuFile)
	if c.unified {
		return parseUsage([]byte(text))
	}
	n, err := strconv.ParseUint(text, 10, 64)
	return n / 1000, err == nil
}

// readFigure returns the trimmed text of a small file, nothing if it cannot be read.
func readFigure(f *os.File) string {
	if f == nil {
		return ""
	}
	buf := procBuffers.Get().(*[2048]byte)
	defer procBuffers.Put(buf)
	b, err := readWhole(f, buf)
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}

// parseUsage returns usage_usec of version 2's cpu.stat.
func parseUsage(b []byte) (uint64, bool) {
	value, ok := bytes.CutPrefix(b, []byte("usage_usec "))
	f := fields{value}
	n, err := strconv.ParseUint(string(f.next(1)), 10, 64)
	return n, ok && err == nil
}

// memory returns the bytes charged to the group, page cache included.
func (c *cgroup) memory() (int64, bool) {
	if c == nil {
		return 0, false
	}
	n, err := strconv.ParseInt(readFigure(c.memoryFile), 10, 64)
	return n, err == nil && n >= 0
}

// count returns the number of open files.
func (c *cgroup) count() (n int64) {
	if c != nil && c.cpuFile != nil {
		n++
	}
	if c != nil && c.memoryFile != nil {
		n++
	}
	return n
}

func (c *cgroup) close() {
	if c == nil {
		return
	}
	for _, f := range []*os.File{c.cpuFile, c.memoryFile} {
		if f != nil {
			f.Close()
		}
	}
}
