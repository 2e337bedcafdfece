package host

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMemory expects the least of what the host has and what the process's groups may use.
func TestMemory(t *testing.T) {
	const total = 4096 << 10
	for _, c := range []struct {
		name, root, kind, groups string
		limits                   map[string]string // by the file below the mount point
		want                     int64
	}{
		{"no cgroups", "", "", "", nil, total},
		{"version 2", "/", "cgroup2 cgroup rw", "0::/a/b",
			map[string]string{"a/memory.max": "1048576", "a/b/memory.max": "max"}, 1 << 20},
		{"version 2, a lower one below", "/", "cgroup2 cgroup rw", "3:cpu:/x\n0::/a/b",
			map[string]string{"a/memory.max": "1048576", "a/b/memory.max": "4096", "x/memory.max": "1"}, 4096},
		{"version 1", "/", "cgroup cgroup rw,memory", "4:memory:/a\n0::/b",
			map[string]string{"a/memory.limit_in_bytes": "65536", "b/memory.limit_in_bytes": "1"}, 65536},
		{"version 1 without a limit", "/", "cgroup cgroup rw,memory", "4:memory:/",
			map[string]string{"memory.limit_in_bytes": "9223372036854771712"}, total},
		{"another controller", "/", "cgroup cgroup rw,cpu,cpuacct", "4:cpu,cpuacct:/a",
			map[string]string{"a/memory.limit_in_bytes": "1"}, total},
		{"a part of the hierarchy", "/pod", "cgroup2 cgroup rw", "0::/pod/a",
			map[string]string{"a/memory.max": "4096"}, 4096},
		{"a group that the mount does not show", "/pod", "cgroup2 cgroup rw", "0::/other",
			map[string]string{"memory.max": "4096", "other/memory.max": "1"}, total},
	} {
		proc, mount := t.TempDir(), t.TempDir()
		write := func(path, text string) {
			t.Helper()
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(filepath.Join(proc, "meminfo"), "MemTotal:  4096 kB\nMemFree: 1 kB")
		if c.kind != "" {
			write(filepath.Join(proc, "self/mountinfo"),
				"36 35 0:9 "+c.root+" "+mount+" rw - "+c.kind)
			write(filepath.Join(proc, "self/cgroup"), c.groups)
		}
		for name, text := range c.limits {
			write(filepath.Join(mount, name), text)
		}
		if got, err := Memory(proc); err != nil || got != c.want {
			t.Errorf("%s: %d, %v, want %d", c.name, got, err, c.want)
		}
	}
	if _, err := Memory(t.TempDir()); err == nil {
		t.Error("a host without a meminfo has memory")
	}
	if n, err := Memory("/proc"); err != nil || n < 1<<20 {
		t.Errorf("this host has %d bytes (%v)", n, err)
	}
}
