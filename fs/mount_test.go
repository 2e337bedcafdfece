package fs

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMounts(t *testing.T) {
	got := Mounts([]byte(`36 35 98:0 / /a\040b rw,noatime shared:1 - fuse.banger banger rw
37 35 98:0 / /c rw - fuse.sshfs banger rw
38 35 98:0 / /d rw - fuse banger rw
39 35 0:5 / /e rw master:1 - ext4 /dev/sda rw
40 35 98:0 / /f` + "\u00a0" + `g\011h rw - fuse.banger banger rw
junk
`))
	if want := []string{"/a b", "/d", "/f\u00a0g\th"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func FuzzMounts(f *testing.F) {
	f.Add([]byte(`36 35 98:0 / /a\040b rw,noatime shared:1 - fuse.banger banger rw`))
	f.Fuzz(func(t *testing.T, mountinfo []byte) {
		dirs := Mounts(mountinfo)
		if most := bytes.Count(mountinfo, []byte("\n")) + 1; len(dirs) > most {
			t.Errorf("%d mounts in %d lines", len(dirs), most)
		}
		if len(dirs) > 0 && !bytes.Contains(mountinfo, []byte(fsName)) {
			t.Errorf("%q are taken for mounts of ours", dirs)
		}
	})
}

// A mount is recognised through symbolic links; a plain directory is none.
func TestMounted(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if mounted(dir) || mounted(filepath.Join(dir, "link")) || mounted(filepath.Join(dir, "none")) {
		t.Error("a directory that is no mount is taken for one")
	}
}

// TestCloseOnExec opens the device by a name of its own, as where a container or a test has bound another node over it.
func TestCloseOnExec(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node")
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(fuseDevice)); err != nil {
		t.Skipf("only root makes devices: %v", err)
	}
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		t.Skipf("devices cannot be opened here: %v", err)
	}
	defer unix.Close(fd)
	closeOnExec()
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("a program that is started inherits it: flags %#x, %v", flags, err)
	}
}
