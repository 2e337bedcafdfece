package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// treeFiles is smaller by default for real guests: an emulated one takes some milliseconds of a processor for each file, as does a daemon with -race.
var treeFiles = flag.Int("tree.files", 0, "of TestGuestTree: how many files it copies; 0: 10,000, but 2,000 with a real guest and without -long")

// writeTree writes n files in directories of a hundred, and gives the digest of all their contents in the order of their names.
func writeTree(t *testing.T, dir string, n int) string {
	t.Helper()
	all := sha256.New()
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprintf("d%03d", i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		text := []byte(strings.Repeat(fmt.Sprintf("file %d\n", i), i%40))
		all.Write(text)
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%02d", i%100)), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return hex.EncodeToString(all.Sum(nil))
}

// treeSum is the digest of the contents of all files below dir in the order of their names, and their number.
func treeSum(t *testing.T, dir string) (string, int) {
	t.Helper()
	all, n := sha256.New(), 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		n++
		_, err = io.Copy(all, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(all.Sum(nil)), n
}

// TestGuestTree copies a tree of many files into a guest and back: equal checksums in the guest, and here.
func TestGuestTree(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"fake", "qemu"} {
		t.Run(driver, func(t *testing.T) {
			if ok, cure := realVMs(); driver == "qemu" && !ok {
				t.Skip(cure)
			}
			n := *treeFiles
			switch {
			case n > 0:
			case driver == "qemu" && !*long:
				n = 2000
			default:
				n = 10_000
			}
			d := testDaemon(t, driver)
			if err := os.Mkdir(d.path("web"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := write(d.path("web", "vmm"), driver); err != nil {
				t.Fatal(err)
			}
			startFor(t, d, "web", "256M")
			dir := t.TempDir()
			tree, back := filepath.Join(dir, "tree"), filepath.Join(dir, "back")
			want := writeTree(t, tree, n)
			run := func(what string, cmd *exec.Cmd) {
				t.Helper()
				began := time.Now()
				if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
					t.Fatalf("%v: %v\n%.1000s", cmd, err, out)
				}
				t.Logf("%s: %v", what, time.Since(began).Round(100*time.Millisecond))
			}
			run("in", d.client("cp", tree, "web:/tmp"))
			if driver == "qemu" {
				out := d.inGuest(t, "web", "cd /tmp/tree && cat d*/* | sha256sum")
				if got, _, _ := strings.Cut(out, " "); got != want {
					t.Errorf("the guest counts %s, not %s", got, want)
				}
			}
			run("out", d.client("cp", "web:/tmp/tree", back))
			if got, files := treeSum(t, back); got != want || files != n {
				t.Errorf("%d files came back, of %s, not %s", files, got, want)
			}
			if driver == "qemu" {
				return // the digests say it, and diff(1) asks for one file after the other
			}
			run("diff -r", exec.Command("diff", "-r", tree, d.path("web", "fs", "tmp", "tree")))
		})
	}
}

// startFor starts a VM with that much memory and waits for its agent.
func startFor(t *testing.T, d *daemon, vm, memory string) {
	t.Helper()
	for _, x := range [][2]string{{"memory", memory}, {"state", "start"}} {
		if err := write(d.path(vm, x[0]), x[1]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := read(d.path(vm, "wait", "healthy")); err != nil {
		t.Fatal(err)
	}
}
