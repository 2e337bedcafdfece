package host

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
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
