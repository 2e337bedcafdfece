package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestIsHere asks of processes in another network namespace and of one without a readable one.
func TestIsHere(t *testing.T) {
	proc := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	process := func(name, net string, open ...string) string {
		dir := filepath.Join(proc, name)
		must(os.MkdirAll(filepath.Join(dir, "ns"), 0o700))
		must(os.MkdirAll(filepath.Join(dir, "fd"), 0o700))
		must(os.Symlink(net, filepath.Join(dir, "ns/net")))
		for i, target := range open {
			must(os.Symlink(target, filepath.Join(dir, "fd", string(rune('0'+i)))))
		}
		return dir
	}
	self := process("self", "net:[1]")
	must(os.Mkdir(filepath.Join(self, "net"), 0o700))
	must(os.WriteFile(filepath.Join(self, "net/unix"), []byte("Num RefCount Protocol Flags Type St "+
		"Inode Path\n0000: 00000002 00000000 00010000 0001 01 77 /x/qmp\nbad\n"), 0o600))
	sockets := unixSockets(proc)
	for _, c := range []struct {
		name, dir string
		want      bool
	}{
		{"the same network", process("2", "net:[1]"), true},
		{"one of its sockets", process("3", "net:[3]", "/dev/null", "socket:[77]"), true},
		{"others only", process("4", "net:[4]", "/dev/null", "socket:[7]", "pipe:[77]"), false},
		{"nothing open", process("5", "net:[5]"), false},
	} {
		if got := isHere(proc, c.dir, sockets); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// TestHasConsole asks for a file that this process has open, before and after its removal.
func TestHasConsole(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "console.log"), filepath.Join(dir, "other")
	for _, p := range []string{path, other} {
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ask := func(when, path string, want bool) {
		t.Helper()
		if got := hasConsole("/proc/self", path); got != want {
			t.Errorf("%s: %v", when, got)
		}
	}
	ask("open", path, true)
	ask("not open", other, false)
	ask("never there", filepath.Join(dir, "none"), false)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	ask("removed", path, true)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ask("another of its name", path, false)
}
