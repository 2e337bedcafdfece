package sshkeys

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestAuthorizedKeys(t *testing.T) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJzYQdUJM0dC7bBhCbGkF8sZ3m2cTfbY8oCUoUm8wF2x"
	for lines, good := range map[string]bool{
		"":                               true,
		key:                              true,
		key + " me@here\n# mine\n" + key: true,
		`command="x",no-pty ` + key:      true,
		"ssh-ed25519 AAAA":               false,
		"ssh-ed25519":                    false,
		key + "\nnonsense":               false,
		key + " a\x1bb":                  false,
		key + " a\u009b31m":              false,
		key + " a\x9b31m":                false,
		key + " Jos\xe9 José":            true,
	} {
		if err := CheckAuthorized(lines); (err == nil) != good {
			t.Errorf("%.100q: %v", lines, err)
		}
	}
}

// A file that is no key of the daemon's own is refused: a VMM may have put it there.
func TestHostKey(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	text, err := generate(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := ssh.ParsePrivateKey(text); err != nil {
		t.Error(err)
	}
	if again, err := read(path); err != nil || string(again) != string(text) {
		t.Errorf("read back otherwise: %v", err)
	}
	if _, err := generate(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("made over another: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
	link, long := filepath.Join(dir, "link"), filepath.Join(dir, "long")
	folder := filepath.Join(dir, "folder")
	err = errors.Join(os.Symlink(path, link), os.Mkdir(folder, 0o700),
		os.WriteFile(long, make([]byte, maxHostKey+1), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{link, long, folder} {
		if _, err := read(p); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was read: %v", p, err)
		}
	}
}

// TestHostKeyAtOnce has many ask for a key that is not there yet: all get the same.
func TestHostKeyAtOnce(t *testing.T) {
	for range 30 {
		path := filepath.Join(t.TempDir(), "key")
		type answer struct {
			key string
			err error
		}
		answers := make(chan answer)
		for range 8 {
			go func() {
				key, _, err := HostKey(path)
				answers <- answer{key, err}
			}()
		}
		first := <-answers
		for range 7 {
			if a := <-answers; a != first || a.err != nil {
				t.Errorf("%v, and %v", a.err, first.err)
			}
		}
	}
}
