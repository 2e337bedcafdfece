package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/vmm"

	"golang.org/x/sys/unix"
)

// opens returns a function that reports whether a file was opened since its last call.
func opens(t *testing.T, path string) func() bool {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	return func() bool {
		opened := false
		for b := make([]byte, 4096); ; {
			read, err := unix.Read(fd, b)
			if errors.Is(err, unix.EAGAIN) {
				return opened
			}
			if err != nil {
				t.Fatal(err)
			}
			opened = opened || read > 0
		}
	}
}

// The mount looks an image up far more often than the image changes.
func TestManifestIsReadOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	makeImage(t, filepath.Join(dir, "app"), "one")
	s, _ := openTest(t, dir)
	number := s.item("app").number
	info := func() vmm.ImageInfo {
		i, ok := s.Info(number)
		if !ok {
			t.Fatal("the image is gone")
		}
		return i
	}
	// settle waits until a look reads nothing, and returns what tells of later opens.
	settle := func() func() bool {
		opened := opens(t, filepath.Join(dir, "app", manifestName))
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
			if info(); !opened() {
				return opened
			}
		}
		t.Fatal("image.json is read at each look")
		return nil
	}
	opened := settle()
	for range 100 {
		info()
		s.Infos()
	}
	if opened() {
		t.Error("image.json was read again")
	}
	// Each change shows at once: of the whole image, of image.json in its place, of a file beside
	// it.
	old := info().Image.Digest
	makeImage(t, filepath.Join(dir, "app"), "two")
	if i := info(); i.Status != vmm.ImageReady || i.Image.Digest == old {
		t.Errorf("replaced: %s %s", i.Status, i.Image.Digest)
	}
	for _, text := range []string{"{", `{"kernel":"vmlinux"}`, `{"kernel":"other"}`} {
		if err := os.WriteFile(filepath.Join(dir, "app", manifestName), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		want := vmm.ImageFailed
		if strings.Contains(text, "vmlinux") {
			want = vmm.ImageReady
		}
		if i := info(); i.Status != want {
			t.Errorf("with %s: %s %s", text, i.Status, i.Reason)
		}
	}
	makeImage(t, filepath.Join(dir, "app"), "three")
	settle()
	if err := os.Remove(filepath.Join(dir, "app", "vmlinux")); err != nil {
		t.Fatal(err)
	}
	if i := info(); i.Status != vmm.ImageFailed || !strings.Contains(i.Reason, "vmlinux") {
		t.Errorf("without its kernel: %s %s", i.Status, i.Reason)
	}
}
