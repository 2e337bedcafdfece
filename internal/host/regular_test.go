package host

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestOpenRegularRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	secret := filepath.Join(t.TempDir(), "secret")
	for _, err := range []error{
		os.WriteFile(in("plain"), []byte("x"), 0o600),
		os.WriteFile(secret, []byte("x"), 0o600),
		os.WriteFile(in("linked"), []byte("x"), 0o600),
		os.Link(in("linked"), in("second")),
		os.Symlink(secret, in("link")),
		os.Symlink("plain", in("near")),
		os.Symlink("/proc/self/fd/0", in("magic")),
		os.Mkdir(in("dir"), 0o700),
		unix.Mkfifo(in("fifo"), 0o600),
		unix.Mknod(in("socket"), unix.S_IFSOCK|0o600, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		if err := unix.Mknod(in("null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
			t.Fatal(err)
		}
	}
	for _, flags := range []int{os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR} {
		for name, want := range map[string]string{
			"linked": "2 names", "link": "symbolic link", "near": "symbolic link", "magic": "symbolic link",
			"dir": "not a regular file", "fifo": "not a regular file", "socket": "not a regular file",
			"null": "not a regular file",
		} {
			if _, err := os.Lstat(in(name)); err != nil {
				continue
			}
			ended := make(chan error, 1)
			go func() {
				f, err := OpenRegular(in(name), flags, AnyOwner)
				if err == nil {
					f.Close()
				}
				ended <- err
			}()
			select {
			case err := <-ended:
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s, flags %#x: %v; want %q", name, flags, err, want)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("%s, flags %#x: it waits", name, flags)
			}
		}
		f, err := OpenRegular(in("plain"), flags, os.Geteuid())
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if _, err := OpenRegular(in("plain"), os.O_RDONLY, os.Geteuid()+1); err == nil || !strings.Contains(err.Error(), "belongs to uid") {
		t.Errorf("another's file: %v", err)
	}
	if _, err := OpenRegular(in("none"), os.O_RDONLY, AnyOwner); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestOpenOrCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for _, line := range []string{"one\n", "two\n"} {
		f, err := OpenOrCreate(path, os.O_WRONLY|os.O_APPEND, os.Geteuid())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, line); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if text, err := os.ReadFile(path); string(text) != "one\ntwo\n" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	dangling := path + "-link"
	if err := os.Symlink(path+"-elsewhere", dangling); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenOrCreate(dangling, os.O_WRONLY, AnyOwner); err == nil {
		t.Error("a link was followed")
	}
	if _, err := os.Lstat(path + "-elsewhere"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file was made through a link: %v", err)
	}
}
