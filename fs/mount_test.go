package fs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"banger/internal/host"
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
			t.Errorf("%q are not mounts of banger", dirs)
		}
	})
}

// A plain directory is no mount, also through symbolic links.
func TestMounted(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if mounted(dir) || mounted(filepath.Join(dir, "link")) || mounted(filepath.Join(dir, "none")) {
		t.Error("a plain directory counts as a mount")
	}
}

// TestFailedMount expects that a failed start leaves neither a mount nor a goroutine.
func TestFailedMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root mounts: run the suite as root")
	}
	s := &Server{o: Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	var err error
	s.fuse, err = fuse.NewServer(fuse.NewDefaultRawFileSystem(), s.o.Dir, &fuse.MountOptions{
		FsName: fsName, Name: fsName, DirectMountStrict: true,
	})
	host.CloseFUSEOnExec()
	if err != nil {
		t.Skipf("mounting fails here: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(s.o.Dir, unix.MNT_DETACH) }) // if the test fails
	if !mounted(s.o.Dir) {
		t.Fatal("the tree is not mounted")
	}
	failed := errors.New("no answer")
	wait := func() error { return failed }
	if err := s.serve(context.Background(), wait); !errors.Is(err, failed) {
		t.Errorf("serve returned %v", err)
	}
	if mounted(s.o.Dir) {
		t.Error("the mount is still there")
	}
	if s.ctx.Err() == nil {
		t.Error("blocked calls go on")
	}
	ended := make(chan struct{})
	go func() {
		s.fuse.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the mount is still served")
	}
}
