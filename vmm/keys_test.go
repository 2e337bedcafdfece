package vmm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestAuthorizedKeys(t *testing.T) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJzYQdUJM0dC7bBhCbGkF8sZ3m2cTfbY8oCUoUm8wF2x"
	for lines, want := range map[string]error{
		"":                               nil,
		key:                              nil,
		key + " me@here\n# mine\n" + key: nil,
		`command="x",no-pty ` + key:      nil,
		"ssh-ed25519 AAAA":               ErrInvalid,
		"ssh-ed25519":                    ErrInvalid,
		key + "\nnonsense":               ErrInvalid,
		key + " a\x1bb":                  ErrInvalid,
		key + " a\u009b31m":              ErrInvalid,
		key + " a\x9b31m":                ErrInvalid,
		key + " Jos\xe9 José":            nil,
		strings.Repeat(key+"\n", 500):    ErrTooBig,
	} {
		if err := checkAuthorizedKeys(lines); !errors.Is(err, want) {
			t.Errorf("%.100q: %v, not %v", lines, err, want)
		}
	}
}

// TestHostKey finds what is not a key of the daemon's own refused: the directory belongs to the VMM.
func TestHostKey(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, HostKeyFile)
	text, err := makeHostKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := ssh.ParsePrivateKey(text); err != nil {
		t.Error(err)
	}
	if again, err := readHostKey(path); err != nil || string(again) != string(text) {
		t.Errorf("read back otherwise: %v", err)
	}
	if _, err := makeHostKey(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("made over another: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
	link, long, folder := filepath.Join(dir, "link"), filepath.Join(dir, "long"), filepath.Join(dir, "folder")
	if err := errors.Join(os.Symlink(path, link), os.WriteFile(long, make([]byte, maxHostKey+1), 0o600), os.Mkdir(folder, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{link, long, folder} {
		if _, err := readHostKey(p); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was read: %v", p, err)
		}
	}
}
