package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// taps returns the links of the daemon's bridge.
func (d *daemon) taps(t *testing.T) []string {
	t.Helper()
	links, err := net.Interfaces()
	must(t, err)
	var taps []string
	for _, l := range links {
		if strings.HasPrefix(l.Name, d.bridge+"-") {
			taps = append(taps, l.Name)
		}
	}
	return taps
}

// leftovers reports directories, processes and taps that belong to no VM of the tree. The daemon
// deletes directories in the background.
func (d *daemon) leftovers(t *testing.T, round, running int) {
	t.Helper()
	ids := map[string]bool{}
	names, err := filepath.Glob(d.path("*", "id"))
	must(t, err)
	for _, name := range names {
		id, err := read(name)
		must(t, err)
		ids[id] = true
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		dirs, err := os.ReadDir(filepath.Join(d.state, "vms"))
		must(t, err)
		dirs = slices.DeleteFunc(dirs, func(e os.DirEntry) bool { return ids[e.Name()] })
		if len(dirs) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Errorf("round %d: the directories %v are no VM's", round, dirs)
			break
		}
	}
	if n := len(d.machines()); n > running {
		t.Errorf("round %d: %d processes for %d running VMs", round, n, running)
	}
	if n := len(d.taps(t)); n > running {
		t.Errorf("round %d: %d taps for %d running VMs: %v", round, n, running, d.taps(t))
	}
}

// footprint counts what the daemon holds and could leak.
type footprint struct {
	Goroutines, FDs, Pipes, Connections, Threads int
	Children, Machines, Taps                     int // processes of its own, QEMUs, links
}

var goroutinesMetric = regexp.MustCompile(`(?m)^go_goroutines (\d+)$`)

func (d *daemon) footprint(t *testing.T) footprint {
	t.Helper()
	metrics, err := read(filepath.Join(d.mount, "metrics"))
	must(t, err)
	m := goroutinesMetric.FindStringSubmatch(metrics)
	if m == nil {
		t.Fatal("metrics lack go_goroutines")
	}
	f := footprint{Machines: len(d.machines()), Taps: len(d.taps(t))}
	f.Goroutines, _ = strconv.Atoi(m[1]) // digits
	pid := d.cmd.Process.Pid
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	must(t, err)
	f.Threads = len(tasks)
	for _, file := range tasks {
		b, _ := os.ReadFile(file) // nothing of a thread that has ended
		f.Children += len(strings.Fields(string(b)))
	}
	// Field 10 of a line is the socket's inode (Documentation/networking/proc_net_tcp.rst).
	inodes := map[string]bool{}
	for _, file := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, file))
		if err != nil {
			continue // a host without IPv6
		}
		for _, line := range strings.Split(string(b), "\n")[1:] {
			if f := strings.Fields(line); len(f) > 9 {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		switch to, err := os.Readlink(fd); {
		case err != nil: // closed meanwhile
		case strings.HasPrefix(to, "pipe:"):
			f.Pipes++
		case inodes[to]:
			f.Connections++
		default:
			f.FDs++
		}
	}
	return f
}

// These many more than before are no leak. The number of the mount's readers changes, and the
// daemon keeps pipes and threads for later requests.
const moreGoroutines, moreFDs, morePipes, mostThreads = 10, 2, 64, 100

// settled waits until the daemon holds no more than before. It returns what the daemon holds.
func (d *daemon) settled(t *testing.T, before footprint) footprint {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		now := d.footprint(t)
		if now.Goroutines <= before.Goroutines+moreGoroutines && now.FDs <= before.FDs+moreFDs &&
			now.Pipes <= before.Pipes+morePipes && now.Connections <= before.Connections &&
			now.Children <= before.Children && now.Machines <= before.Machines &&
			now.Taps <= before.Taps && now.Threads <= mostThreads {
			return now
		}
		if time.Now().After(end) {
			t.Errorf("the daemon holds %+v and held %+v before", now, before)
			return now
		}
	}
}
