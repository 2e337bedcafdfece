package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWithBlock(t *testing.T) {
	block := blockBegin + "\nA\nB\n" + blockEnd + "\n"
	for _, x := range []struct{ text, keys, want string }{
		{"", "", ""},
		{"", "A\nB", block},
		{"own", "A\nB", "own\n" + block},
		{"own\n" + blockBegin + "\nold\n" + blockEnd + "\nmore\n", "A\nB", "own\n" + block + "more\n"},
		{"own\n" + block + "more\n", "", "own\nmore\n"},
		{"own\n" + blockBegin + "\ncut", "A\nB", "own\n" + block},
	} {
		if got := withBlock(x.text, x.keys); got != x.want {
			t.Errorf("%q with %q is %q, not %q", x.text, x.keys, got, x.want)
		}
	}
}

func TestSetKeys(t *testing.T) {
	root := t.TempDir()
	home := filepath.Join(root, "home")
	for range 2 { // the second changes nothing
		if err := setAuthorizedKeys(home, "A"); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]os.FileMode{".ssh": 0o700, ".ssh/authorized_keys": 0o600} {
		if info, err := os.Stat(filepath.Join(home, path)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v", path, info, err)
		}
	}
	if err := setHostKey(root, "key"); err != nil {
		t.Fatal(err)
	}
	etc := filepath.Join(root, "etc", "ssh")
	if _, err := os.Stat(etc); err == nil {
		t.Error("a guest without sshd got a directory for it")
	}
	if err := os.MkdirAll(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := setHostKey(root, "key"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(etc, "ssh_host_ed25519_key")); err != nil || string(b) != "key" {
		t.Errorf("%q %v", b, err)
	}
	if left, err := os.ReadDir(etc); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
