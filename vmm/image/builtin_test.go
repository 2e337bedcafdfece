package image

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"banger/vmm"
	"banger/vmm/image/boot"

	"golang.org/x/sys/unix"
)

// debForTest returns the directory of the kernel's package, that of `make image`.
func debForTest(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("no dpkg-deb: run on Debian")
	}
	dir := "../../.cache/image/kernel"
	if boot.KeptKernel(dir) == "" {
		t.Skip("no kernel: make image")
	}
	return dir
}

// program writes the least static program, with a text behind it.
func program(t *testing.T, name, text string) {
	t.Helper()
	elf := "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9) + "\x02\x00\x3e\x00\x01\x00\x00\x00" + strings.Repeat("\x00", 28) +
		"\x40\x00\x38\x00\x00\x00\x40\x00\x00\x00\x00\x00"
	if err := os.WriteFile(name, []byte(elf+text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// fakeHost makes a root that has the running kernel, as Arch has it, and an agent.
func fakeHost(t *testing.T) Host {
	t.Helper()
	if _, _, err := (&Host{}).busybox(); err != nil {
		t.Skip(err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	h := Host{Root: t.TempDir(), Agent: filepath.Join(t.TempDir(), "agent"), Packages: t.TempDir()}
	dir := filepath.Join(h.Root, "usr/lib/modules", unix.ByteSliceToString(name.Release[:]))
	builtin := ""
	for _, m := range boot.ModuleNames {
		builtin += "kernel/" + m + ".ko\n"
	}
	err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "vmlinuz"), []byte("kernel"), 0o644),
		os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(builtin), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	program(t, h.Agent, "one")
	return h
}

func openWith(t *testing.T, dir string, h Host) (*Set, *users) {
	t.Helper()
	s, err := Open(Options{Dir: dir, Host: h})
	if err != nil {
		t.Fatal(err)
	}
	u := &users{of: map[string][]string{}}
	s.Serve(u)
	t.Cleanup(s.Close)
	return s, u
}

// make builds an image and returns how that ended.
func (s *Set) make(t *testing.T, number uint64, source string) error {
	t.Helper()
	if err := s.Build(t.Context(), number, source, me(t)); err != nil {
		return err
	}
	_, err := s.Wait(t.Context(), number)
	return err
}

// TestBuiltin makes the built-in image of Debian's package: the same bytes from the same inputs.
func TestBuiltin(t *testing.T) {
	h := fakeHost(t)
	h.Packages, h.Kept = debForTest(t), true
	var digests []string
	for range 2 {
		s, _ := openWith(t, filepath.Join(t.TempDir(), "images"), h)
		number := create(t, s, Builtin)
		if err := s.make(t, number, "builtin"); err != nil {
			t.Fatal(err)
		}
		img, err := s.Image(Builtin)
		if err != nil || filepath.Base(img.Kernel) != "vmlinux" || img.Memory != builtinMemory || img.Source != "builtin" {
			t.Fatalf("%+v, error %v", img, err)
		}
		digests = append(digests, img.Digest)
		if c, err := s.Blobs(); err != nil || c.Files != 0 {
			t.Errorf("left are %+v, error %v", c, err)
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("two builds differ: %s", digests)
	}
}

// TestCloudHost makes the image of a host that runs Debian's kernel for clouds, with its modules: it
// is that of the package.
func TestCloudHost(t *testing.T) {
	h := fakeHost(t)
	h.Packages, h.Kept = debForTest(t), true
	release := filepath.Base(filepath.Dir(kernelOf(t, h)))
	h.Root = t.TempDir()
	i, err := boot.Unpack(t.Context(), boot.KeptKernel(h.Packages), h.Root)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(os.Rename(filepath.Join(h.Root, "boot/vmlinuz-"+i.Release), filepath.Join(h.Root, "boot/vmlinuz-"+release)),
		os.Rename(filepath.Join(h.Root, "lib/modules", i.Release), filepath.Join(h.Root, "lib/modules", release)))
	if err != nil {
		t.Fatal(err)
	}
	s, _ := openWith(t, filepath.Join(t.TempDir(), "images"), h)
	number := create(t, s, Builtin)
	var digests []string
	for _, source := range []string{"host", "builtin"} {
		if err := s.make(t, number, source); err != nil {
			t.Fatal(err)
		}
		img, err := s.Image(Builtin)
		if err != nil || img.Memory != builtinMemory || img.Source != source {
			t.Errorf("%+v, error %v", img, err)
		}
		digests = append(digests, img.Digest)
	}
	if digests[0] != digests[1] {
		t.Errorf("the host's kernel makes another image: %s", digests)
	}
}

// kernelOf returns the kernel's file of a host that fakeHost made.
func kernelOf(t *testing.T, h Host) string {
	t.Helper()
	kernels, err := filepath.Glob(filepath.Join(h.Root, "usr/lib/modules/*/vmlinuz"))
	if err != nil || len(kernels) != 1 {
		t.Fatal(kernels, err)
	}
	return kernels[0]
}

// TestRenew makes the built-in image anew while VMs have it. It serves until the new one is there,
// and after a failure; other images get the new agent.
func TestRenew(t *testing.T) {
	dir, h := filepath.Join(t.TempDir(), "images"), fakeHost(t)
	s, u := openWith(t, dir, h)
	number := create(t, s, Builtin)
	if err := s.make(t, number, "host"); err != nil {
		t.Fatal(err)
	}
	first, err := s.Image(Builtin)
	if err != nil || first.Memory != hostMemory || first.Source != "host" || filepath.Base(first.Kernel) != "vmlinuz" {
		t.Fatalf("%+v, error %v", first, err)
	}
	other, copied := create(t, s, "one"), create(t, s, "two")
	if err := errors.Join(s.make(t, other, "rootfs:"+rootTar(t)), s.make(t, copied, "builtin")); err != nil {
		t.Fatal(err)
	}
	u.mu.Lock()
	u.of[Builtin], u.of["one"] = []string{"web"}, []string{"db"}
	u.mu.Unlock()
	if err := s.make(t, number, "host"); err != nil {
		t.Error("a refresh:", err)
	}
	if again, err := s.Image(Builtin); err != nil || again.Digest != first.Digest {
		t.Errorf("the same inputs made %+v, error %v", again, err)
	}
	if err := os.Rename(h.Agent, h.Agent+".away"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also the daemon after this
		if err := s.make(t, number, "host"); !errors.Is(err, vmm.ErrGone) || !strings.Contains(err.Error(), h.Agent) {
			t.Errorf("without an agent: %v", err)
		}
		if kept, err := s.Image(Builtin); err != nil || kept.Digest != first.Digest {
			t.Errorf("after a failure %+v, error %v", kept, err)
		}
		s.Close()
		s, _ = openWith(t, dir, h)
		number = infoOf(t, s, Builtin).Number
		if i := infoOf(t, s, Builtin); i.Status != vmm.ImageFailed || !strings.Contains(i.Reason, h.Agent) {
			t.Errorf("the next daemon has it as %s %s", i.Status, i.Reason)
		}
	}
	program(t, h.Agent, "two")
	if err := s.make(t, number, "host"); err != nil {
		t.Fatal(err)
	}
	second, err := s.Image(Builtin)
	if err != nil || second.Digest == first.Digest {
		t.Errorf("another agent made %+v, error %v", second, err)
	}
	for name, want := range map[string]string{"one": "two", "two": "one"} {
		img, err := s.Image(name)
		if err != nil {
			t.Fatal(err)
		}
		if agent, err := boot.Agent(img.Initrd); err != nil || !strings.HasSuffix(string(agent), want) {
			t.Errorf("image %s has the agent %.200q, error %v; want %s", name, agent, err, want)
		}
	}
}

func infoOf(t *testing.T, s *Set, name string) vmm.ImageInfo {
	t.Helper()
	for _, i := range s.Infos() {
		if i.Name == name {
			return i
		}
	}
	t.Fatalf("no image %s", name)
	return vmm.ImageInfo{}
}

// TestBuiltinLikeAny expects that a directory of the built-in image can be filled and removed, and
// what users read while it is not there.
func TestBuiltinLikeAny(t *testing.T) {
	dir, h := filepath.Join(t.TempDir(), "images"), fakeHost(t)
	s, u := openWith(t, dir, h)
	missing := func(err error) {
		t.Helper()
		if !errors.Is(err, vmm.ErrInvalid) || !strings.Contains(err.Error(), "`banger image builtin` makes it") {
			t.Errorf("without an image: %v", err)
		}
	}
	_, err := s.Image(Builtin)
	missing(err)
	app := create(t, s, "app")
	for _, source := range []string{"builtin", "rootfs:" + rootTar(t)} {
		missing(s.Build(t.Context(), app, source, me(t)))
	}
	for range 2 {
		number := create(t, s, Builtin)
		_, err = s.Image(Builtin)
		missing(err)
		if err := s.Build(t.Context(), number, "rootfs:"+rootTar(t), me(t)); !errors.Is(err, vmm.ErrNotPermitted) {
			t.Errorf("of a tar: %v", err)
		}
		if err := s.Remove(t.Context(), Builtin, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.make(t, create(t, s, Builtin), "host"), s.make(t, app, "rootfs:"+rootTar(t))); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), Builtin, nil); !errors.Is(err, vmm.ErrBusy) || !strings.Contains(err.Error(), "need it: app") {
		t.Errorf("rmdir under another image: %v", err)
	}
	if err := s.Remove(t.Context(), "app", nil); err != nil {
		t.Fatal(err)
	}
	u.mu.Lock()
	u.of[Builtin] = []string{"web"}
	u.mu.Unlock()
	if err := s.Remove(t.Context(), Builtin, nil); !errors.Is(err, vmm.ErrBusy) || !strings.Contains(err.Error(), "used by web") {
		t.Errorf("rmdir under a VM: %v", err)
	}
}

// TestBuiltinOfOthers expects that the built-in image is the daemon's user's alone, and that the
// host's kernel is read with the rights of who asks for it.
func TestBuiltinOfOthers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("run as root")
	}
	h := fakeHost(t)
	for d := h.Root; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := openWith(t, filepath.Join(t.TempDir(), "images"), h)
	alice := vmm.Caller{UID: 1001, GID: 1001}
	if _, err := s.Create(t.Context(), Builtin, vmm.Owner{UID: alice.UID}); !errors.Is(err, vmm.ErrNotPermitted) {
		t.Errorf("mkdir: %v", err)
	}
	number := create(t, s, Builtin)
	for _, source := range []string{"builtin", "host"} {
		if err := s.Build(t.Context(), number, source, alice); !errors.Is(err, vmm.ErrNotPermitted) {
			t.Errorf("%s: %v", source, err)
		}
	}
	own := create(t, s, "own")
	try := func() error {
		if err := s.Build(t.Context(), own, "host", alice); err != nil {
			return err
		}
		_, err := s.Wait(t.Context(), own)
		return err
	}
	if err := try(); err != nil {
		t.Error("a kernel that all may read:", err)
	}
	if err := os.Chmod(kernelOf(t, h), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.make(t, number, "host"); err != nil {
		t.Error("root's:", err)
	}
	if err := try(); err == nil || !strings.Contains(err.Error(), "uid 1001 may not read the host's kernel") {
		t.Errorf("a kernel of root's: %v", err)
	}
	if _, err := s.Image("own"); err == nil {
		t.Error("the image is there without its kernel")
	}
}

// TestStatic refuses programs that no guest can run.
func TestStatic(t *testing.T) {
	dir := t.TempDir()
	static, dynamic := filepath.Join(dir, "static"), "/bin/bash"
	program(t, static, "")
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		static: "", dynamic: "needs libraries, which no guest has: install a static busybox: busybox-static of Debian",
		text: "it is no program", filepath.Join(dir, "none"): "there is no " + dir + "/none: install a static busybox",
	} {
		_, _, err := (&Host{Busybox: name}).busybox()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v; want %q", name, err, want)
		}
	}
	if b, name, err := firstStatic([]string{dynamic, static, text}); err != nil || name != static || len(b) == 0 {
		t.Errorf("%s, error %v", name, err)
	}
}

// buffer is a log that a test reads.
type buffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// TestCheckBuiltin reads what a daemon says at its start.
func TestCheckBuiltin(t *testing.T) {
	dir, h := filepath.Join(t.TempDir(), "images"), fakeHost(t)
	said := func() (log, told string) {
		t.Helper()
		b := &buffer{}
		s, err := Open(Options{Dir: dir, Host: h, Log: slog.New(slog.NewTextHandler(b, nil))})
		if err != nil {
			t.Fatal(err)
		}
		u := &users{}
		s.Serve(u)
		s.work.Wait()
		s.Close()
		return b.text.String(), strings.Join(u.told, "\n")
	}
	const cure = "type: banger image builtin"
	if log, told := said(); !strings.Contains(log, "there is no image that VMs boot, "+cure) || told != "" {
		t.Errorf("without an image: %q, %q", log, told)
	}
	s, _ := openWith(t, dir, h)
	if err := s.make(t, create(t, s, Builtin), "host"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if log, told := said(); log != "" || told != "" {
		t.Errorf("with the image: %q, %q", log, told)
	}
	m, err := readManifest(filepath.Join(dir, Builtin))
	if err != nil {
		t.Fatal(err)
	}
	m.Agent = "" // as earlier versions made it
	made := filepath.Join(dir, Builtin)
	if err := errors.Join(os.Remove(filepath.Join(made, manifestName)), writeManifest(made, m)); err != nil {
		t.Fatal(err)
	}
	if log, told := said(); log != "" || told != "" {
		t.Errorf("with the image of an earlier version: %q, %q", log, told)
	}
	program(t, h.Agent, "two")
	if log, told := said(); !strings.Contains(log, cure) || told != "builtin outdated" {
		t.Errorf("with another agent: %q, %q", log, told)
	}
}
