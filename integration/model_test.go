package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestShells runs random commands on 20 VMs in 50 shells. The contract allows every refusal, and
// the events lead to the VMs and states of the tree. After the removal of all VMs the daemon holds
// nothing of them.
func TestShells(t *testing.T) {
	d := testDaemon(t, "fake")
	r := random(t)
	before := d.footprint(t)
	var wg sync.WaitGroup
	for i := range 50 {
		wr := rand.New(rand.NewPCG(r.Uint64(), uint64(i)))
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 20 {
				vm := wr.IntN(20)
				script := []string{
					fmt.Sprintf("mkdir v%d && echo fake > v%d/vmm", vm, vm),
					fmt.Sprintf("echo start > v%d/state", vm),
					fmt.Sprintf("echo stop > v%d/state", vm),
					fmt.Sprintf("echo kill > v%d/state", vm),
					fmt.Sprintf("echo pause > v%d/state", vm),
					fmt.Sprintf("echo resume > v%d/state", vm),
					fmt.Sprintf("echo %d > v%d/cpus", 1+wr.IntN(4), vm),
					fmt.Sprintf("cat v%d/stats v%d/config v%d/health", vm, vm, vm),
					fmt.Sprintf("rmdir v%d", vm),
					// mv(1) would move a directory into one that is there; rename(2) refuses.
					fmt.Sprintf("mv -T v%d v%d", vm, wr.IntN(20)),
				}[wr.IntN(10)]
				cmd := exec.Command("timeout", "30", "bash", "-c", script)
				cmd.Dir, cmd.Env = d.path(), append(os.Environ(), "LC_ALL=C")
				var said bytes.Buffer
				cmd.Stderr = &said
				if err := cmd.Run(); err != nil && !refused(script, said.String()) {
					t.Errorf("%s: %v: %s", script, err, &said)
				}
			}
		}()
	}
	wg.Wait()

	events, err := read(filepath.Join(d.mount, "events"))
	must(t, err)
	want := map[string]string{}
	for _, line := range strings.Split(events, "\n") {
		f := strings.Fields(line)
		if len(f) < 4 {
			t.Fatalf("not an event: %q", line)
		}
		switch name := f[2]; f[3] {
		case "create":
			want[name] = "stopped"
		case "remove":
			delete(want, name)
		case "rename":
			want[name] = want[f[4]]
			delete(want, f[4])
		case "state":
			want[name] = f[4]
		}
	}
	for name, state := range want {
		if got, err := read(d.path(name, "state")); err != nil || got != state {
			t.Errorf("%s is %q (%v), by its events %q", name, got, err, state)
		}
	}
	for name := range want {
		if err := write(d.path(name, "state"), "kill"); err != nil {
			t.Error(err)
		}
		if err := os.Remove(d.path(name)); err != nil {
			t.Error(err)
		}
	}
	t.Logf("before: %+v, after: %+v", before, d.settled(t, before))
}

// refused reports whether all that was printed are refusals that concurrency explains.
func refused(script, said string) bool {
	allowed := []string{"File exists", "No such file", "Device or resource busy",
		"Directory not empty", "Host is down", "are the same file"}
	if strings.Contains(script, "start") {
		allowed = append(allowed, "Input/output error") // another shell's stop interrupted it
	}
	for _, line := range strings.Split(strings.TrimSpace(said), "\n") {
		if !slices.ContainsFunc(allowed, func(s string) bool { return strings.Contains(line, s) }) {
			return false
		}
	}
	return true
}
