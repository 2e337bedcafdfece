package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMakeDirs(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	top := t.TempDir()
	dir := filepath.Join(top, "a", "b")
	for range 2 {
		if err := MakeDirs(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if info, err := os.Stat(d); err != nil || info.Mode().Perm() != 0o711 {
			t.Errorf("%s: %v, %v", d, info, err)
		}
	}
	file := filepath.Join(top, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := MakeDirs(file, 0o711); err == nil {
		t.Error("a file passes for a directory")
	}
}

func TestOpenPrivate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "lock")
	for _, before := range []os.FileMode{0, 0o666, 0o600} { // 0: it is not there
		if before != 0 {
			if err := os.Chmod(path, before); err != nil {
				t.Fatal(err)
			}
		}
		f, err := OpenPrivate(path)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := f.Stat(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("was %v: %v, %v", before, info, err)
		}
		f.Close()
	}
	other := filepath.Join(dir, "other")
	for _, c := range []struct {
		what, want string
		make       func() error
	}{
		{"a symbolic link", "symbolic link", func() error { return os.Symlink(path, other) }},
		{"a second name", "2 names", func() error { return os.Link(path, other) }},
		{"a fifo", "not a regular file", func() error { return unix.Mkfifo(other, 0o600) }},
	} {
		if err := c.make(); err != nil {
			t.Fatal(err)
		}
		if f, err := OpenPrivate(other); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", c.what, f, err)
		}
		if err := os.Remove(other); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 40003, 40003); err != nil {
			t.Fatal(err)
		}
		if f, err := OpenPrivate(path); err == nil || !strings.Contains(err.Error(), "belongs to uid 40003") {
			t.Errorf("another's: %v, %v", f, err)
		}
	}
	if err := MakePrivate(filepath.Join(dir, "none")); err != nil {
		t.Errorf("an absent file: %v", err)
	}
}
