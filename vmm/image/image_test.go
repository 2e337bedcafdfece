package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/internal/host"
	"banger/vmm"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func makeImage(t *testing.T, dir, kernel string) {
	t.Helper()
	m := &manifest{Kernel: "vmlinux", Initrd: "initrd", Cmdline: "quiet", Memory: 1 << 20, Digest: digest([]byte(kernel)), Size: 9}
	err := host.MakeDirs(filepath.Dir(dir), 0o755)
	if err == nil {
		err = host.ReplaceDir(dir, func(tmp string) error {
			return errors.Join(os.WriteFile(filepath.Join(tmp, m.Kernel), []byte(kernel), 0o644),
				os.WriteFile(filepath.Join(tmp, m.Initrd), nil, 0o644), writeManifest(tmp, m))
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestSet(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Names(); len(got) != 0 {
		t.Errorf("names of nothing: %q", got)
	}
	makeImage(t, filepath.Join(dir, "two"), "k")
	makeImage(t, filepath.Join(dir, "builtin"), "k")
	makeImage(t, filepath.Join(dir, "damaged"), "k")
	os.Remove(filepath.Join(dir, "damaged", "vmlinux"))
	os.MkdirAll(filepath.Join(dir, ".two-123"), 0o755)
	if diff := cmp.Diff([]string{"builtin", "two"}, s.Names()); diff != "" {
		t.Error(diff)
	}
	got, err := s.Image("builtin")
	if err != nil {
		t.Fatal(err)
	}
	want := vmm.Image{
		Name: "builtin", Kernel: filepath.Join(dir, "builtin/vmlinux"), Initrd: filepath.Join(dir, "builtin/initrd"),
		Cmdline: "quiet", Memory: 1 << 20, Digest: digest([]byte("k")), Size: 9,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"", ".", "..", "none", "../images/two", ".two-123", "Two", "-x", strings.Repeat("a", 64)} {
		if _, err := s.Image(name); !errors.Is(err, vmm.ErrNotFound) {
			t.Errorf("image %q: %v", name, err)
		}
	}
	if _, err := s.Image("damaged"); err == nil || errors.Is(err, vmm.ErrNotFound) {
		t.Errorf("a damaged image: %v", err)
	}
}

func TestOpenOfAFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: name}); err == nil {
		t.Error("a file was opened as images")
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"kernel":"vmlinux","initrd":"initramfs.cpio","memory":1}`))
	f.Add([]byte(`{"kernel":"../x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err != nil {
			return
		}
		for _, name := range m.files() {
			if strings.Contains(name, "/") || name == ".." {
				t.Errorf("file %q is outside of the image", name)
			}
		}
	})
}

// TestImagesOfOneUser expects a bound of one user's images, which leaves others theirs.
func TestImagesOfOneUser(t *testing.T) {
	s, err := Open(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	create := func(uid uint32, i int) error {
		_, err := s.Create(t.Context(), fmt.Sprintf("i%d-%d", uid, i), vmm.Owner{UID: uid})
		return err
	}
	for i := range imagesOfUser {
		if err := create(1001, i); err != nil {
			t.Fatal(err)
		}
	}
	if err := create(1001, imagesOfUser); !errors.Is(err, syscall.EDQUOT) {
		t.Errorf("one more image: %v", err)
	}
	for _, uid := range []uint32{1002, 0} {
		if err := create(uid, 0); err != nil {
			t.Errorf("an image of uid %d: %v", uid, err)
		}
	}
	if err := s.Remove(t.Context(), "i1001-7", nil); err != nil {
		t.Fatal(err)
	}
	if err := create(1001, imagesOfUser); err != nil {
		t.Errorf("an image in place of another: %v", err)
	}
}

// TestRefusedRemoveEndsNoBuild expects that a build goes on when its image cannot be removed.
func TestRefusedRemoveEndsNoBuild(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("run as root: it mounts a tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Create(t.Context(), "app", vmm.Owner{}); err != nil {
		t.Fatal(err)
	}
	ended := false
	s.item("app").job = &job{cancel: func() { ended = true }}
	remount := func(flags uintptr) {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|flags, "size=1m"); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	if err := s.Remove(t.Context(), "app", nil); !errors.Is(err, unix.EROFS) || ended {
		t.Errorf("on a read-only disk: %v, and the build has ended: %v", err, ended)
	}
	remount(0)
	if err := s.Remove(t.Context(), "app", nil); err != nil || !ended {
		t.Errorf("on a writable disk: %v, and the build has ended: %v", err, ended)
	}
}
