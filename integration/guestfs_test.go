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

// treeFiles is smaller by default for real guests: an emulated guest needs milliseconds for a file.
var treeFiles = flag.Int("tree.files", 0, "files that TestGuestTree copies "+
	"(default: 10,000 with a fake guest or -long, 2,000 with a real one)")

// writeTree writes n files in directories of a hundred. It returns the digest of all contents in
// the order of the names.
func writeTree(t *testing.T, dir string, n int) string {
	t.Helper()
	all := sha256.New()
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprintf("d%03d", i/100))
		if i%100 == 0 {
			must(t, os.MkdirAll(sub, 0o755))
		}
		text := []byte(strings.Repeat(fmt.Sprintf("file %d\n", i), i%40))
		all.Write(text)
		must(t, os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%02d", i%100)), text, 0o644))
	}
	return hex.EncodeToString(all.Sum(nil))
}

// treeSum returns the digest of all contents below dir in the order of the names, and their number.
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
	must(t, err)
	return hex.EncodeToString(all.Sum(nil)), n
}

// TestGuestTree copies a tree of many files into a guest and back. The checksums must be equal
// there and here.
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
			must(t, os.Mkdir(d.path("web"), 0o755))
			must(t, write(d.path("web", "vmm"), driver))
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
				return // the digests suffice, and diff(1) is slow: it reads one file after the other
			}
			run("diff -r", exec.Command("diff", "-r", tree, d.path("web", "fs", "tmp", "tree")))
		})
	}
}
