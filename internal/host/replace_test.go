package host

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestReplaceFile replaces a file, and keeps the old one and nothing else after an error.
func TestReplaceFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write := func(text string, err error) error {
		return ReplaceFile(path, 0o640, func(f *os.File) error {
			_, werr := f.WriteString(text)
			return errors.Join(werr, err)
		})
	}
	if err := errors.Join(write("one", nil), write("two", nil)); err != nil {
		t.Fatal(err)
	}
	full := errors.New("full")
	if err := write("three", full); !errors.Is(err, full) {
		t.Error(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || string(b) != "two" {
		t.Errorf("%q %v", b, err)
	}
	entries, _ := os.ReadDir(filepath.Dir(path))
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 || len(entries) != 1 {
		t.Errorf("%v, %d files, %v", info.Mode(), len(entries), err)
	}
}

// TestRemoveUnfinished expects that only files of ReplaceFile, of that path and age, are removed.
func TestRemoveUnfinished(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hosts")
	err := ReplaceFile(path, 0o600, func(f *os.File) error { // a crash leaves such a file
		return os.Link(f.Name(), filepath.Join(dir, ".hosts-1"+unfinishedSuffix))
	})
	for _, name := range []string{".hosts-20260101", ".hosts", ".other-1" + unfinishedSuffix} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	if err = errors.Join(err, RemoveUnfinished(path, time.Hour)); err != nil {
		t.Fatal(err)
	}
	for want := 5; want >= 4; want-- {
		if entries, _ := os.ReadDir(dir); len(entries) != want {
			t.Errorf("there are %v, want %d", entries, want)
		}
		if err := RemoveUnfinished(path, 0); err != nil {
			t.Fatal(err)
		}
	}
}
