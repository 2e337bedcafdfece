package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestFreezable(t *testing.T) {
	got := freezable([]byte(`rootfs / rootfs rw 0 0
/dev/vda / ext4 rw,relatime 0 0
/dev/vda /again ext4 rw,relatime 0 0
tmpfs /run tmpfs rw 0 0
/dev/vdb /a\040b xfs rw 0 0
/dev/vdc /ro ext4 ro,relatime 0 0
/dev/sr0 /cd iso9660 rw 0 0
/dev/loop0 /a\040b/loop btrfs rw 0 0
`))
	if want := []string{"/a b/loop", "/a b", "/"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// mounted gives an ext4 of its own.
func mounted(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root mounts: run the suite as root")
	}
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	for _, c := range [][]string{{"truncate", "-s", "8M", image}, {"mke2fs", "-q", "-t", "ext4", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() {
		if d, err := os.Open(dir); err == nil {
			unix.IoctlSetInt(int(d.Fd()), fiThaw, 0) // whatever the test left
			d.Close()
		}
		err := unix.Unmount(dir, 0)
		for end := time.Now().Add(10 * time.Second); err == unix.EBUSY && time.Now().Before(end); err = unix.Unmount(dir, 0) {
			time.Sleep(time.Millisecond) // a freeze that was given up has it open until its ioctl returns
		}
		if err != nil {
			t.Errorf("cannot unmount %s: %v", dir, err)
		}
	})
	return dir
}

// writes tells when a write to the file system has ended.
func writes(dir string) chan error {
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600) }()
	return done
}

func written(t *testing.T, done chan error, within time.Duration) bool {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
		return true
	case <-time.After(within):
		return false
	}
}

func TestFreezeAndThaw(t *testing.T) {
	dir := mounted(t)
	f := freezer{list: filepath.Join(t.TempDir(), "frozen")}
	if n, err := f.freeze(context.Background(), []string{dir, "/proc"}, time.Minute); n != 1 || err != nil {
		t.Fatalf("%d frozen, %v", n, err)
	}
	done := writes(dir)
	if written(t, done, 50*time.Millisecond) {
		t.Error("it is not frozen")
	}
	if !f.thaw() || !written(t, done, 10*time.Second) {
		t.Error("it is not let go")
	}
	if f.thaw() {
		t.Error("what was let go is said to have been held")
	}
}

// A host that died lets nothing stay frozen: neither for long, nor over the agent's own end.
func TestNothingStaysFrozen(t *testing.T) {
	dir := mounted(t)
	f := freezer{list: filepath.Join(t.TempDir(), "frozen")}
	for within := 50 * time.Millisecond; ; within *= 2 { // a busy disk's last writes take longer than the first of them
		n, err := f.freeze(context.Background(), []string{dir}, within)
		if err != nil || n == 0 && within > time.Minute {
			t.Fatalf("%d frozen within %v, %v", n, within, err)
		}
		if !written(t, writes(dir), within+10*time.Second) {
			t.Fatal("it is frozen for good")
		}
		if n == 1 {
			break
		}
	}
	if f.thaw() {
		t.Error("what was let go by itself is said to have been held")
	}
	if n, err := f.freeze(context.Background(), []string{dir}, time.Minute); n != 1 || err != nil {
		t.Fatalf("%d frozen, %v", n, err)
	}
	done := writes(dir)
	next := freezer{list: f.list}
	next.recover()
	if !written(t, done, 10*time.Second) {
		t.Error("an agent that is started again leaves it frozen")
	}
	f.thaw()
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := f.freeze(gone, []string{dir}, time.Minute); err == nil {
		// It was faster than the end of its host, which then says so.
		f.thaw()
	}
	if !written(t, writes(dir), 10*time.Second) {
		t.Error("what nobody waits for stays frozen")
	}
}
