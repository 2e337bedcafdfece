package host

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A file that is followed before it exists is read once it does.
func TestTailBeforeItsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	tail, err := OpenTail(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { tail.Close() }()
	p := make([]byte, 10)
	if n, _ := tail.ReadAt(p, 0); n != 0 {
		t.Errorf("%d bytes of no file", n)
	}
	if size, when := TailSize(path, -1); size != 0 || !when.IsZero() {
		t.Errorf("size %d, %v", size, when)
	}
	if err := os.WriteFile(path, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, _ := tail.ReadAt(p, 0); string(p[:n]) != "hello" {
		t.Errorf("got %q", p[:n])
	}
	if size, when := TailSize(path, -1); size != 5 || when.IsZero() {
		t.Errorf("size %d, %v", size, when)
	}
}

// A VMM may put a link or a FIFO in place of its log. Neither is opened.
func TestTailFollowsNothing(t *testing.T) {
	dir := t.TempDir()
	secret, link := filepath.Join(dir, "secret"), filepath.Join(dir, "link")
	fifo := filepath.Join(dir, "fifo")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, fifo, dir} {
		if tail, err := OpenTail(path); err == nil {
			tail.Close()
			t.Errorf("%s was opened", path)
		}
		if size, _ := TailSize(path, -1); size != 0 {
			t.Errorf("%s has size %d", path, size)
		}
	}
}
