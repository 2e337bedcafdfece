package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"
)

// TestCrashSnapshots kills the daemon while it makes, removes and restores snapshots. Afterwards
// the acknowledged snapshots are in the records and in the disk, and no others. The guest goes on, and
// the disk is whole.
func TestCrashSnapshots(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		vmm    string
		rounds int
		within time.Duration
	}{{"fake", 30, 60 * time.Millisecond}, {"qemu", 8, 120 * time.Millisecond}} {
		t.Run(c.vmm, func(t *testing.T) {
			if ok, cure := realVMs(); c.vmm == "qemu" && !ok {
				t.Skip(cure)
			}
			r := random(t)
			d := testDaemon(t, c.vmm)
			must(t, os.Mkdir(d.path("db"), 0o755))
			must(t, write(d.path("db", "config"), "vmm "+c.vmm+"\ndisk 16M"))
			must(t, write(d.path("db", "state"), "start"))
			must(t, healthy(d, "db"))
			known := map[string]bool{} // acknowledged
			for round := range c.rounds {
				if c.vmm == "fake" || round%4 == 3 { // some of a VM that does not run
					state, _ := read(d.path("db", "state"))
					word := map[string]string{"running": "kill", "stopped": "start"}[state]
					must(t, write(d.path("db", "state"), word))
				}
				open := "" // what was under way
				done := make(chan struct{})
				go func() {
					defer close(done)
					for i := 0; ; i++ {
						open = fmt.Sprintf("s%d-%d", round, i)
						if os.Mkdir(d.path("db", "snapshots", open), 0o755) != nil {
							return
						}
						known[open] = true
						if i%2 == 1 {
							open = fmt.Sprintf("s%d-%d", round, i-1)
							if os.Remove(d.path("db", "snapshots", open)) != nil {
								return
							}
							delete(known, open)
						}
						if state, _ := read(d.path("db", "state")); state == "stopped" && i%3 == 2 {
							open = ""
							snapshot := fmt.Sprintf("s%d-%d", round, i)
							if write(d.path("db", "restore"), snapshot) != nil {
								return
							}
						}
					}
				}()
				time.Sleep(time.Duration(r.Int64N(int64(c.within)))) // the random point
				must(t, d.signal(syscall.SIGKILL))
				<-done
				must(t, d.start())
				checkSnapshots(t, d, c.vmm, round, known, open)
				if t.Failed() {
					return
				}
			}
			if state, _ := read(d.path("db", "state")); state == "running" {
				must(t, healthy(d, "db"))
				must(t, write(d.path("db", "state"), "kill"))
			}
			if c.vmm == "qemu" {
				// A snapshot cut short loses some space at most: status 3 (qemu-img(1), check).
				check := exec.Command("qemu-img", "check", d.disk(t))
				out, err := check.CombinedOutput()
				if err != nil && check.ProcessState.ExitCode() != 3 {
					t.Errorf("the disk: %v: %s", err, out)
				}
			}
			d.leftovers(t, c.rounds, 0)
		})
	}
}

// disk returns the work disk of the only VM.
func (d *daemon) disk(t *testing.T) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(d.state, "vms", "*", "disks", "work.qcow2"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("disks %v, %v", paths, err)
	}
	return paths[0]
}

// inDisk counts the snapshots in the disk of the only VM.
func inDisk(t *testing.T, d *daemon) int {
	t.Helper()
	out, err := exec.Command("qemu-img", "snapshot", "-U", "-l", d.disk(t)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return len(tagLine.FindAll(out, -1))
}

var tagLine = regexp.MustCompile(`(?m)^\d+ +(banger-\d+) `)

// checkSnapshots compares the listed snapshots and their number in the disk with the acknowledged
// ones, known. It changes known to the listed ones.
func checkSnapshots(
	t *testing.T, d *daemon, vmm string, round int, known map[string]bool, open string,
) {
	t.Helper()
	entries, err := os.ReadDir(d.path("db", "snapshots"))
	must(t, err)
	listed := map[string]bool{}
	for _, e := range entries {
		listed[e.Name()] = true
		if !known[e.Name()] && e.Name() != open {
			t.Errorf("round %d: %s is there and was never acknowledged", round, e.Name())
		}
		if _, err := read(d.path("db", "snapshots", e.Name(), "created")); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}
	for name := range known {
		if !listed[name] && name != open {
			t.Errorf("round %d: %s was acknowledged and is not there", round, name)
		}
	}
	clear(known)
	for name := range listed {
		known[name] = true
	}
	there := 0
	// The daemon removes leftovers in the background.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if vmm == "fake" {
			dirs, _ := filepath.Glob(filepath.Join(filepath.Dir(d.disk(t)), "snapshot-*"))
			there = len(dirs)
		} else {
			there = inDisk(t, d)
		}
		if there == len(known) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("round %d: %d are in the disk, %d are known", round, there, len(known))
			return
		}
	}
}
