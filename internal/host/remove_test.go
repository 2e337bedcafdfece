package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// countdown is a context that ends when Err was asked for that many times.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestRemoveAllInSteps expects that a removal ends with its context in the middle of a large file,
// that the next one goes on, and that neither touches what has a name elsewhere.
func TestRemoveAllInSteps(t *testing.T) {
	old := removeStep
	removeStep = 4096
	defer func() { removeStep = old }()
	const size = 10 * 4096
	outside, dir := t.TempDir(), filepath.Join(t.TempDir(), "vm")
	for _, err := range []error{
		os.Mkdir(dir, 0o700),
		os.WriteFile(filepath.Join(dir, "disk"), make([]byte, size), 0o600),
		os.WriteFile(filepath.Join(outside, "image"), make([]byte, size), 0o600),
		os.Link(filepath.Join(outside, "image"), filepath.Join(dir, "a-hard-link")),
		os.Symlink(filepath.Join(outside, "image"), filepath.Join(dir, "a-link")),
		os.Symlink(outside, filepath.Join(dir, "a-tree")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	length := func(path string) int64 {
		info, err := os.Stat(path)
		if err != nil {
			return -1
		}
		return info.Size()
	}
	err := RemoveAll(&countdown{context.Background(), 9}, dir)
	if n := length(filepath.Join(dir, "disk")); !errors.Is(err, context.Canceled) ||
		n >= size || n <= 0 {
		t.Errorf("after the end of its context: %v, and the disk has %d bytes", err, n)
	}
	if err := RemoveAll(context.Background(), dir); err != nil || length(dir) != -1 {
		t.Errorf("the next removal: %v", err)
	}
	if n := length(filepath.Join(outside, "image")); n != size {
		t.Errorf("a file with a name elsewhere has %d bytes now", n)
	}
	if err := RemoveAll(context.Background(), dir); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}
