package collector

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

func TestCgroups(t *testing.T) {
	root := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v1 := "30 20 0:26 / " + root + "/cpuacct rw - cgroup cgroup rw,cpuacct\n31 20 0:27 / " + root + "/memory rw - cgroup cgroup rw,memory\n"
	v2 := "32 20 0:28 / " + root + "/unified rw - cgroup2 cgroup2 rw\n33 20 0:29 /sub " + root + "/elsewhere rw - cgroup2 cgroup2 rw\n"
	write("cpuacct/vm/cpuacct.usage", "5000000\n")
	write("memory/vm/memory.usage_in_bytes", "4096\n")
	write("unified/vm/cpu.stat", "usage_usec 77\nuser_usec 1\n")
	write("unified/vm/memory.current", "8192\n")
	for _, c := range []struct {
		name, mounts, own, group string
		cpu                      uint64
		memory                   int64
		found                    bool
	}{
		{"version 1", v1, "4:memory:/\n3:cpuacct:/\n", "4:memory:/vm\n3:cpuacct:/vm\n", 5000, 4096, true},
		{"version 2", v2, "0::/system.slice\n", "0::/vm\n", 77, 8192, true},
		{"both, with controllers in version 1", v1 + v2, "4:memory:/\n3:cpuacct:/\n0::/vm\n", "4:memory:/vm\n3:cpuacct:/vm\n0::/vm\n", 5000, 4096, true},
		{"the daemon's own", v2, "0::/vm\n", "0::/vm\n", 0, 0, false},
		{"out of the namespace", v2, "0::/\n", "0::/../vm\n", 0, 0, false},
		{"not mounted", "", "0::/\n", "0::/vm\n", 0, 0, false},
		{"no controllers", v2, "0::/\n", "0::/none\n", 0, 0, false},
	} {
		write("proc/self/mountinfo", c.mounts)
		write("proc/self/cgroup", c.own)
		write("proc/42/cgroup", c.group)
		g := findCgroups(filepath.Join(root, "proc")).ownGroup(filepath.Join(root, "proc/42/cgroup"))
		if (g != nil) != c.found {
			t.Errorf("%s: found is %v", c.name, g != nil)
			continue
		}
		cpu, _ := g.cpu()
		memory, _ := g.memory()
		if cpu != c.cpu || memory != c.memory {
			t.Errorf("%s: %d µs, %d bytes", c.name, cpu, memory)
		}
		g.close()
	}
}

func FuzzCgroup(f *testing.F) {
	f.Add([]byte("4:memory:/vm\n0::/x\n"), []byte("usage_usec 5\n"), []byte("1 2 3 / /sys rw - cgroup2 x y\n"))
	f.Add([]byte("a:b\n:::\n0::/../x"), []byte("usage_usec -1"), []byte(" - cgroup"))
	f.Fuzz(func(t *testing.T, groups, stat, mounts []byte) {
		for group := range maps.Values(parseCgroup(groups)) {
			if group[0] != '/' {
				t.Fatalf("%q is a group", group)
			}
		}
		parseUsage(stat)
		cgroupMounts(mounts)
	})
}
