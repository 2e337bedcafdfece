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
	got := freezable([]byte(`1 1 0:2 / / rw - rootfs rootfs rw
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 254:0 / /again rw,relatime - ext4 /dev/vda rw
24 22 0:21 / /run rw - tmpfs tmpfs rw
25 22 254:16 / /a\040b rw - xfs /dev/vdb rw
26 22 254:32 / /ro rw,relatime - ext4 /dev/vdc ro
27 22 254:33 / /bound ro,relatime - ext4 /dev/vdd rw
28 22 11:0 / /cd rw - iso9660 /dev/sr0 rw
29 25 7:0 / /a\040b/loop rw - btrfs /dev/loop0 rw
30 22 7:1 / /e\011f\012g\134h rw - ext4 /dev/loop1 rw
31 22 7:2 / /i` + "\u00a0" + `j rw - ext4 /dev/loop2 rw
`))
	want := []string{"/i\u00a0j", "/e\tf\ng\\h", "/a b/loop", "/a b", "/"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// mounted mounts an ext4 of its own, whose mount point has all that the kernel's lists escape.
func mounted(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root mounts: run the suite as root")
	}
	dir, image := filepath.Join(t.TempDir(), "a b\t\nc\\d"), filepath.Join(t.TempDir(), "image")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
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
