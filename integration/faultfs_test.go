package integration

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"banger/integration/faultfs"
)

// TestFaultLayer proves that a layer fails and records as it says.
func TestFaultLayer(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root mounts: run the suite as root")
	}
	below, dir := t.TempDir(), t.TempDir()
	layer, err := faultfs.Mount(below, dir)
	must(t, err)
	t.Cleanup(func() { must(t, layer.Unmount()) })
	run := func(script string) error {
		return exec.Command("bash", "-c", "cd "+dir+" && "+script).Run()
	}
	if run("! ls -l /proc/self/fd | grep /dev/fuse") != nil {
		t.Error("a program inherits the layer's connection to the kernel")
	}
	layer.StartRecord()
	must(t, run("echo one >kept; sync kept; mkdir d; sync ."))
	synced := layer.Position()
	must(t, run("echo two >lost; mv kept moved; echo more >>moved; touch d/f; sync d/f; sync moved"))
	record := layer.EndRecord()
	check := func(what string, tree *faultfs.Tree, want map[string]string) {
		t.Helper()
		to := t.TempDir()
		must(t, tree.WriteTo(to))
		for _, name := range []string{"kept", "lost", "moved", "d/f"} {
			b, err := os.ReadFile(filepath.Join(to, name))
			if text, there := want[name]; string(b) != text || there != (err == nil) {
				t.Errorf("%s: %s has %q (%v), not %q", what, name, b, err, text)
			}
		}
	}
	all := map[string]string{"lost": "two\n", "moved": "one\nmore\n", "d/f": ""}
	check("all", record.All(record.Len()), all)
	check("synced", record.Synced(synced), map[string]string{"kept": "one\n"})
	// A sync of a file keeps its content and not its name.
	check("synced later", record.Synced(record.Len()), map[string]string{"kept": "one\nmore\n"})
	lost := 0
	for seed := range uint64(50) {
		tree := record.Random(record.Len(), rand.New(rand.NewPCG(seed, seed)))
		to := t.TempDir()
		must(t, tree.WriteTo(to))
		names, err := filepath.Glob(filepath.Join(to, "*"))
		must(t, err)
		if len(names) < 2 || len(names) > 3 { // d, kept or moved, and perhaps lost
			t.Errorf("seed %d: there are %v", seed, names)
		}
		if !slices.Contains(names, filepath.Join(to, "lost")) {
			lost++
		}
	}
	if lost == 0 || lost == 50 {
		t.Errorf("of 50 cuts %d have lost what was not synced", lost)
	}

	layer.Arm(faultfs.Fault{At: 1, Errno: syscall.ENOSPC})
	if run("echo x >a") == nil || run("mkdir b") == nil {
		t.Error("a change succeeds on a full disk")
	}
	want := []string{"create a", "write a", "mkdir b"}
	if got := layer.Lift(); !slices.Equal(got, want) {
		t.Errorf("changes are %q, not %q", got, want)
	}
	layer.Arm(faultfs.Fault{At: 0, Errno: syscall.EIO, Once: true})
	if run("mkdir b") == nil || run("mkdir b") != nil {
		t.Error("an error that happens once does not")
	}
	layer.Lift()
}
