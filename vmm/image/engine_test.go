package image

import (
	"archive/tar"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"banger/internal/tartest"
	"banger/vmm"
)

// users is a Manager of no VMs but those named.
type users struct {
	mu   sync.Mutex
	of   map[string][]string
	told []string
}

func (u *users) ImageUsers(image string) []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.of[image]
}

func (u *users) TellImage(image, detail string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.told = append(u.told, image+" "+detail)
}

// openTest opens a Set with a built-in image, and closes it at the test's end.
func openTest(t *testing.T, dir string) (*Set, *users) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, Builtin)); err != nil {
		makeImage(t, filepath.Join(dir, Builtin), "kernel")
	}
	return openWith(t, dir, Host{})
}

// me is this process as a Caller.
func me(t *testing.T) vmm.Caller {
	t.Helper()
	c := vmm.Caller{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	for path, f := range map[string]**os.File{"/": &c.Root, ".": &c.Dir} {
		var err error
		if *f, err = os.Open(path); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*f).Close() })
	}
	return c
}

func rootTar(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(name, rootTarBytes(t), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// rootTarBytes is the least root that has an init.
func rootTarBytes(t *testing.T) []byte {
	return tartest.Of(t, tar.Header{Name: "sbin/init", Typeflag: tar.TypeReg, Linkname: "init", Mode: 0o755})
}

func create(t *testing.T, s *Set, name string) uint64 {
	t.Helper()
	i, err := s.Create(context.Background(), name, vmm.Owner{})
	if err != nil || i.Status != vmm.ImageEmpty {
		t.Fatal(i.Status, err)
	}
	return i.Number
}

func TestImages(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "images")
	s, u := openTest(t, dir)
	source := "rootfs:" + rootTar(t)
	one, two := create(t, s, "one"), create(t, s, "two")
	if _, err := s.Create(ctx, "one", vmm.Owner{}); !errors.Is(err, vmm.ErrExists) {
		t.Error(err)
	}
	for text, want := range map[string]error{
		"": vmm.ErrInvalid, "nonsense": vmm.ErrInvalid, "rootfs:": vmm.ErrInvalid, "rootfs:none.tar": vmm.ErrInvalid, "oci:/dev/null": vmm.ErrInvalid,
		"builtin:x": vmm.ErrInvalid, "debian:../x": vmm.ErrInvalid, "debian:Book worm": vmm.ErrInvalid, "alpine:3": vmm.ErrInvalid, "a\nb": vmm.ErrInvalid,
	} {
		if err := s.Build(ctx, one, text, me(t)); !errors.Is(err, want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if i, _ := s.Info(one); i.Status != vmm.ImageEmpty {
		t.Errorf("a bad source changed it: %s", i.Status)
	}
	if _, err := s.Image("one"); !errors.Is(err, vmm.ErrBusy) {
		t.Error("an empty image can be booted:", err)
	}
	for _, n := range []uint64{one, two} {
		if err := s.Build(ctx, n, source, me(t)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []uint64{one, two} {
		if _, err := s.Wait(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	img, err := s.Image("one")
	if err != nil || img.Root == "" || img.Source != source || img.Memory != initMemory || !strings.HasSuffix(img.Cmdline, rootCmdline) {
		t.Errorf("%+v, error %v", img, err)
	}
	a, _ := os.Stat(filepath.Join(dir, "one", rootName))
	b, _ := os.Stat(filepath.Join(dir, "two", rootName))
	if !os.SameFile(a, b) {
		t.Error("images of the same source do not share their disk")
	}
	u.mu.Lock()
	u.of["one"] = []string{"web"}
	u.mu.Unlock()
	for what, err := range map[string]error{"rmdir": s.Remove(ctx, "one", nil), "source": s.Build(ctx, one, source, me(t))} {
		if !errors.Is(err, vmm.ErrBusy) || !strings.Contains(err.Error(), "used by web") {
			t.Errorf("%s of a used image: %v", what, err)
		}
	}
	if err := s.Remove(ctx, "two", nil); err != nil {
		t.Error(err)
	}
	if c, err := s.Blobs(); err != nil || c.UnusedBytes != 0 || c.Files == 0 {
		t.Errorf("%+v, error %v", c, err)
	}
	u.mu.Lock()
	u.of["one"] = nil
	u.mu.Unlock()
	if err := s.Remove(ctx, "one", nil); err != nil {
		t.Error(err)
	}
	if _, err := s.Wait(ctx, one); !errors.Is(err, vmm.ErrNotFound) {
		t.Error(err)
	}
	if err := s.Collect(ctx); err != nil {
		t.Error(err)
	}
	if c, err := s.Blobs(); err != nil || c.Files != 0 {
		t.Errorf("%+v, error %v", c, err)
	}
}

// TestImagesOfManyUsers expects that images that come and go do not take others out of the list:
// each caller reads the directory, in which another's image appears just then.
func TestImagesOfManyUsers(t *testing.T) {
	ctx := context.Background()
	s, _ := openTest(t, t.TempDir())
	var all sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d"} {
		all.Go(func() {
			for range 100 {
				if _, err := s.Create(ctx, name, vmm.Owner{}); err != nil {
					t.Errorf("create %s: %v", name, err)
					return
				}
				if s.item(name) == nil {
					t.Errorf("%s was created and is not there", name)
					return
				}
				if err := s.Remove(ctx, name, nil); err != nil {
					t.Errorf("remove %s: %v", name, err)
					return
				}
				if s.item(name) != nil {
					t.Errorf("%s was removed and is there", name)
					return
				}
			}
		})
	}
	all.Wait()
}

// What a daemon that was killed has left is cleaned up by the next, and nothing half-made is ready.
func TestInterrupted(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "images")
	s, _ := openTest(t, dir)
	number := create(t, s, "one")
	if err := s.Build(ctx, number, "rootfs:"+rootTar(t), me(t)); err != nil {
		t.Fatal(err)
	}
	s.Close() // ends the build, wherever it is
	if err := os.WriteFile(filepath.Join(dir, "one", recordName), []byte(`{"source":"builtin","building":true}`), 0o644); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(dir, "one", manifestName))
	left := []string{".one-123", ".blobs/built/.key-1", ".blobs/layers/.fetching-1", ".removed-1/two"}
	for _, l := range left {
		if err := os.MkdirAll(filepath.Join(dir, l), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	next, _ := openTest(t, dir)
	for _, l := range left {
		if _, err := os.Stat(filepath.Join(dir, l)); err == nil {
			t.Errorf("%s is still there", l)
		}
	}
	infos := next.Infos()
	if len(infos) != 2 || infos[1].Status != vmm.ImageFailed || infos[1].Reason != interrupted {
		t.Errorf("%+v", infos)
	}
	if err := next.Build(ctx, infos[1].Number, "builtin", me(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := next.Wait(ctx, infos[1].Number); err != nil {
		t.Error(err)
	}
}

// rmdir ends a build, which leaves nothing.
func TestCancelledBuild(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "images")
	s, _ := openTest(t, dir)
	number := create(t, s, "one")
	if err := s.Build(ctx, number, "rootfs:"+rootTar(t), me(t)); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "one", nil); err != nil {
		t.Fatal(err)
	}
	s.Close()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != Builtin && e.Name() != blobsName {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// An image built with an older daemon gets the agent of the new one.
func TestRecompose(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "images")
	s, _ := openTest(t, dir)
	number := create(t, s, "one")
	if err := s.Build(ctx, number, "rootfs:"+rootTar(t), me(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(ctx, number); err != nil {
		t.Fatal(err)
	}
	s.Close()
	makeImage(t, filepath.Join(dir, Builtin), "newer kernel")
	next, _ := openTest(t, dir)
	img, err := next.Image("one")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(img.Kernel); err != nil || string(b) != "newer kernel" {
		t.Errorf("kernel %q, error %v", b, err)
	}
}

// A path is opened with the rights of who names it, and a root daemon's threads keep theirs.
// TestRightsHaveNoCapabilities finds a thread that walks a user's path without capabilities, of
// which some open files, and others with theirs.
func TestRightsHaveNoCapabilities(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("run as root")
	}
	status := func() (text []byte, err error) { return os.ReadFile("/proc/thread-self/status") }
	r := rights{uid: 65534, gid: 65534}
	var within []byte
	if err := r.do(func() (err error) { within, err = status(); return err }); err != nil {
		t.Fatal(err)
	}
	for _, set := range []string{"CapEff", "CapPrm", "CapInh"} {
		if !strings.Contains(string(within), set+":\t0000000000000000\n") {
			t.Errorf("%s is not empty:\n%s", set, within)
		}
	}
	if !strings.Contains(string(within), "Uid:\t0\t0\t0\t65534\n") {
		t.Errorf("the user may signal the thread:\n%s", within)
	}
	after, err := status()
	if err != nil || strings.Contains(string(after), "CapEff:\t0000000000000000\n") {
		t.Errorf("another thread lost its capabilities (%v):\n%s", err, after)
	}
}

func TestLocalRights(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("run as root")
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"secret": 0o600, "group": 0o640, "open": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(dir, name), 0, 4242); err != nil {
			t.Fatal(err)
		}
	}
	by := me(t)
	by.UID, by.GID = 65534, 65534
	for name, c := range map[string]struct {
		groups []uint32
		want   error
	}{"secret": {nil, vmm.ErrAccess}, "group": {nil, vmm.ErrAccess}, "open": {nil, nil}} {
		by.Groups = c.groups
		l, err := openLocal(filepath.Join(dir, name), by)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		l.close()
	}
	by.Groups = []uint32{4242}
	l, err := openLocal(filepath.Join(dir, "group"), by)
	if err != nil {
		t.Error("of a supplementary group:", err)
	}
	l.close()
	// Links out of a directory are not followed.
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	by.UID, by.GID = 0, 0
	if l, err = openLocal(dir, by); err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for _, name := range []string{"link", "../x", "/etc/passwd", "."} {
		if f, err := l.open(name); err == nil {
			f.Close()
			t.Errorf("%s was opened", name)
		}
	}
	done := make(chan struct{})
	for range 50 { // whichever thread
		go func() {
			if f, err := os.Open(filepath.Join(dir, "secret")); err != nil {
				t.Error("a thread lost its rights:", err)
			} else {
				f.Close()
			}
			done <- struct{}{}
		}()
	}
	for range 50 {
		<-done
	}
}
