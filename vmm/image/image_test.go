package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/vmm"

	"github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"
)

func makeImage(t *testing.T, dir, kernel string) {
	t.Helper()
	m := &manifest{Kernel: "vmlinux", Initrd: "initrd", Cmdline: "quiet", Memory: 1 << 20, Digest: digest([]byte(kernel)), Size: 9}
	if err := writeImage(dir, m, map[string][]byte{"vmlinux": []byte(kernel), "initrd": nil}); err != nil {
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

func TestInstall(t *testing.T) {
	src := filepath.Join(t.TempDir(), "builtin")
	images := filepath.Join(t.TempDir(), "state/images")
	kernel := filepath.Join(images, "builtin/vmlinux")
	for _, k := range []string{"one", "one", "two"} {
		makeImage(t, src, k)
		if err := Install(src, images); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(kernel)
		if err != nil || string(got) != k {
			t.Errorf("kernel %q, error %v; want %q", got, err, k)
		}
	}
	entries, err := os.ReadDir(images)
	if err != nil || len(entries) != 1 {
		t.Errorf("%d entries are left in images, error %v", len(entries), err)
	}
	if err := Install(filepath.Join(src, "none"), images); err == nil {
		t.Error("an image that does not exist was installed")
	}
}

func fixtureModules() map[string][]byte {
	modules := make(map[string][]byte)
	for i, m := range moduleNames {
		modules[m] = bytes.Repeat([]byte{'m'}, i+1)
	}
	return modules
}

func TestInitramfs(t *testing.T) {
	entries := rootEntries([]byte("agent"), []byte("busybox"), []string{"sh", "httpd"}, fixtureModules())
	first, err := packInitramfs(entries)
	if err != nil {
		t.Fatal(err)
	}
	entries[0], entries[len(entries)-1] = entries[len(entries)-1], entries[0]
	second, err := packInitramfs(entries)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("the order of the entries changes the archive")
	}

	seen := map[string]string{}
	r := cpio.NewReader(bytes.NewReader(first))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != 0 || h.Uid != 0 || h.Guid != 0 {
			t.Errorf("%s: time %v, owner %d:%d", h.Name, h.ModTime, h.Uid, h.Guid)
		}
		if parent := filepath.Dir(h.Name); parent != "." && seen[parent] == "" {
			t.Errorf("%s comes before its directory", h.Name)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Linkname != "" {
			data = []byte(h.Linkname)
		}
		seen[h.Name] = fmt.Sprintf("%o %s", h.Mode, data)
	}
	for name, want := range map[string]string{
		"init":                        "100755 agent",
		"bin/busybox":                 "100755 busybox",
		"bin/sh":                      "120777 busybox",
		"sbin":                        "120777 bin",
		"tmp":                         "41777 ",
		"dev/console":                 "20600 ",
		"lib/modules/virtio_ring.ko":  "100644 m",
		"etc/passwd":                  "100644 root::0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"lib/modules/overlay.ko":      "100644 " + strings.Repeat("m", len(moduleNames)),
		"lib/modules/virtio_pci.ko":   "100644 mmmmmm",
		"lib/modules/virtio_mmio.ko":  "100644 mmm",
		"lib/modules/virtio-rng.ko":   "100644 " + strings.Repeat("m", 12),
		"lib/modules/net_failover.ko": "100644 " + strings.Repeat("m", 10),
	} {
		if seen[name] != want {
			t.Errorf("%s: %q, want %q", name, seen[name], want)
		}
	}
	if list := seen[moduleList]; !strings.HasPrefix(list, "100644 /lib/modules/virtio_ring.ko\n/lib/modules/virtio.ko\n") {
		t.Errorf("%s: %q", moduleList, list)
	}
	// Device numbers 5, 1 stand in the header of dev/console as 2 x 8 digits before the name's length.
	if i := bytes.Index(first, []byte("dev/console\x00")); i < 110 || string(first[i-110+78:i-110+94]) != "0000000500000001" {
		t.Error("dev/console has not the device numbers 5, 1")
	}
}

func packageTar(t *testing.T, leaveOut string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(name, data string) {
		if name == leaveOut {
			return
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, data)
	}
	add("./boot/vmlinuz-6.1", "kernel")
	add("./elsewhere/overlay.ko", "no")
	for _, m := range moduleNames {
		add("./lib/modules/6.1/kernel/"+m+".ko", m)
	}
	w.Close()
	return buf.Bytes()
}

func TestReadKernelTar(t *testing.T) {
	kernel, modules, err := readKernelTar(bytes.NewReader(packageTar(t, "")))
	if err != nil || string(kernel) != "kernel" || len(modules) != len(moduleNames) || string(modules["overlay"]) != "overlay" {
		t.Errorf("kernel %q, %d modules, error %v", kernel, len(modules), err)
	}
	for leaveOut, want := range map[string]string{
		"./boot/vmlinuz-6.1":                     "no /boot/vmlinuz",
		"./lib/modules/6.1/kernel/virtio_net.ko": "no module virtio_net.ko",
	} {
		if _, _, err := readKernelTar(bytes.NewReader(packageTar(t, leaveOut))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("without %s: %v", leaveOut, err)
		}
	}
	if _, _, err := readKernelTar(bytes.NewReader(packageTar(t, "")[:700])); err == nil {
		t.Error("half a package was taken")
	}
}

func TestParseProgramOutput(t *testing.T) {
	if got := dependsOn("linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-9-cloud-amd64\n"); got != "linux-image-6.1.0-9-cloud-amd64" {
		t.Errorf("depends on %q", got)
	}
	if got := dependsOn("W: nothing\n"); got != "" {
		t.Errorf("depends on %q", got)
	}
	if diff := cmp.Diff([]string{"[", "sh"}, appletNames("[\nbusybox\nsh\nsh\na/b\n")); diff != "" {
		t.Error(diff)
	}
}

// kernelForTest gives the path of the kernel's package: the one of `make image` if there is one, else fetched.
func kernelForTest(t *testing.T) string {
	t.Helper()
	for _, tool := range []string{"dpkg-deb", "apt-get"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s: run on Debian", tool)
		}
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("no busybox: apt-get install busybox-static")
	}
	if name := onlyPackage("../../.cache/image/kernel"); name != "" {
		return name
	}
	name, err := kernelPackage(context.Background(), BuildOptions{CacheDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Skipf("no kernel: make image, or apt-get update: %v", err)
	}
	return name
}

func TestBuild(t *testing.T) {
	deb := kernelForTest(t)
	tmp := t.TempDir()
	agent := filepath.Join(tmp, "agent")
	if err := os.WriteFile(agent, []byte("agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	o := BuildOptions{Agent: agent, Package: deb, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	var images []vmm.Image
	for _, parent := range []string{"a", "b"} {
		o.Dir = filepath.Join(tmp, parent, Builtin)
		if err := Build(context.Background(), o); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Options{Dir: filepath.Dir(o.Dir)})
		if err != nil {
			t.Fatal(err)
		}
		img, err := s.Image(Builtin)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, img)
	}
	if filepath.Base(images[0].Kernel) != "vmlinux" {
		t.Errorf("kernel %s: not one for PVH", images[0].Kernel)
	}
	if images[0].Digest != images[1].Digest {
		t.Errorf("two builds differ: %s, %s", images[0].Digest, images[1].Digest)
	}
	// Nothing is written when the inputs are the same.
	before, err := os.Stat(images[1].Kernel)
	if err != nil {
		t.Fatal(err)
	}
	if err := Build(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(images[1].Kernel)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the image was made again from the same inputs, error %v", err)
	}
	if err := os.WriteFile(agent, []byte("another"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Build(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	if m, err := readManifest(o.Dir); err != nil || m.Digest == images[1].Digest {
		t.Errorf("another agent made the same image, error %v", err)
	}
}

func TestBuildWithoutAgent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), Builtin)
	err := Build(context.Background(), BuildOptions{Dir: dir, Agent: "/nonexistent/agent"})
	if err == nil || !strings.HasPrefix(err.Error(), "cannot make image builtin: ") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was made: %v", err)
	}
}
