package collector

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"banger/internal/host"
)

func TestCgroups(t *testing.T) {
	root := filepath.Join(t.TempDir(), "a b") // as mountinfo has no path
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
	point := strings.ReplaceAll(root, " ", `\040`)
	v1 := "30 20 0:26 / " + point + "/cpuacct rw - cgroup cgroup rw,cpuacct\n31 20 0:27 / " + point + "/memory rw - cgroup cgroup rw,memory\n"
	v2 := "32 20 0:28 / " + point + "/unified rw - cgroup2 cgroup2 rw\n33 20 0:29 /sub " + point + "/elsewhere rw - cgroup2 cgroup2 rw\n"
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

// TestRealCgroup moves a process into a group of its own and compares with what the kernel says of the process.
func TestRealCgroup(t *testing.T) {
	groups := findCgroups("/proc")
	dir := ""
	for _, controller := range []string{"", "cpuacct"} {
		d := filepath.Join(groups.mounts[controller], groups.own[controller], fmt.Sprintf("banger-test-%d", os.Getpid()))
		if groups.mounts[controller] != "" && os.Mkdir(d, 0o755) == nil {
			dir = d
			break
		}
	}
	if dir == "" {
		t.Skip("no cgroup can be made here: run the tests as root where cgroups are mounted")
	}
	busy := exec.Command("sh", "-c", "while :; do :; done")
	if err := busy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = busy.Process.Kill()
		_ = busy.Wait() // killed
		waitFor(t, "the group to be removed", func() bool { return os.Remove(dir) == nil })
	})
	file := fmt.Sprintf("/proc/%d/cgroup", busy.Process.Pid)
	if g := groups.ownGroup(file); g != nil {
		t.Error("a process that is in this one's group has one of its own")
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(busy.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	g := groups.ownGroup(file)
	if g == nil {
		t.Fatal("the group is not found")
	}
	defer g.close()
	var before uint64
	waitFor(t, "a tenth of a second of CPU", func() bool {
		usec, ok := g.cpu()
		if !ok || usec < before {
			t.Fatalf("%d µs after %d", usec, before)
		}
		before = usec
		return usec > 100_000
	})
	p := statOf(t, busy.Process.Pid)
	if process := (p.utime + p.stime) * (1e6 / ticksPerSecond); before > process+100_000 {
		t.Errorf("the group used %d µs, the process in it %d", before, process)
	}
}

func FuzzCgroup(f *testing.F) {
	f.Add([]byte("4:memory:/vm\n0::/x\n"), []byte("usage_usec 5\n"), []byte("1 2 3 / /sys rw - cgroup2 x y\n"))
	f.Add([]byte("a:b\n:::\n0::/../x"), []byte("usage_usec -1"), []byte(" - cgroup"))
	f.Fuzz(func(t *testing.T, groups, stat, mounts []byte) {
		for group := range maps.Values(host.ParseCgroup(groups)) {
			if group[0] != '/' {
				t.Fatalf("%q is a group", group)
			}
		}
		parseUsage(stat)
		host.CgroupMounts(mounts)
	})
}
