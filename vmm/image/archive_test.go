package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"banger/internal/tartest"
	"banger/vmm"
	"banger/vmm/image/boot"

	"github.com/cavaliergopher/cpio"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
)

// distribution is the tar of a root with an init and a kernel, whose modules are compressed with
// zstd but for one that is part of the kernel.
func distribution(t *testing.T) []byte {
	t.Helper()
	const modules = "lib/modules/6.1/"
	entries := []tar.Header{
		{Name: "sbin/init", Typeflag: tar.TypeReg, Linkname: "init", Mode: 0o755},
		file("etc/marker", "it is here"), file("boot/vmlinuz-6.1", "a kernel"), file(modules+"modules.builtin", "kernel/drivers/virtio/virtio.ko\n"),
	}
	for _, m := range boot.ModuleNames {
		if m != "virtio" {
			entries = append(entries, file(modules+"kernel/"+m+".ko.zst", string(zstdFile([]byte("module "+m)))))
		}
	}
	return tartest.Of(t, entries...)
}

func gzipped(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	w.Close()
	return buf.Bytes()
}

func zstdFile(b []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	defer w.Close()
	return w.EncodeAll(b, nil)
}

// dockerArchive writes what `docker save` does, of an image with that layer.
func dockerArchive(t *testing.T, layer []byte) string {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config = "linux", runtime.GOARCH, v1.Config{Entrypoint: []string{"/sbin/init"}}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "saved.tar")
	if err := tarball.WriteToFile(path, name.MustParseReference("app:latest"), img); err != nil {
		t.Fatal(err)
	}
	return path
}

// built builds an image of the source and gives how it ended.
func built(t *testing.T, source string) vmm.ImageInfo {
	t.Helper()
	s, _ := openTest(t, filepath.Join(t.TempDir(), "images"))
	number := create(t, s, "app")
	if err := s.Build(context.Background(), number, source, me(t)); err != nil {
		t.Fatal(err)
	}
	_, _ = s.Wait(context.Background(), number) // what it says is in the info
	i, _ := s.Info(number)
	return i
}

// The same root comes in every form that a path can have.
func TestForms(t *testing.T) {
	if _, err := exec.LookPath("debugfs"); err != nil {
		t.Skip("apt install e2fsprogs")
	}
	root, dir := distribution(t), t.TempDir()
	for name, b := range map[string][]byte{"x.tar": root, "x.tar.gz": gzipped(root), "x.tar.zst": zstdFile(root)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, source := range []string{"rootfs:" + dir + "/x.tar", "rootfs:" + dir + "/x.tar.gz", "rootfs:" + dir + "/x.tar.zst", "docker-archive:" + dockerArchive(t, root)} {
		i := built(t, source)
		if i.Status != vmm.ImageReady {
			t.Errorf("%s: %s %s", source, i.Status, i.Reason)
			continue
		}
		if b, err := exec.Command("debugfs", "-R", "cat /etc/marker", i.Image.Root).Output(); err != nil || string(b) != "it is here" {
			t.Errorf("%s: its file is %q, error %v", source, b, err)
		}
		if b, err := os.ReadFile(i.Image.Kernel); err != nil || string(b) != "a kernel" {
			t.Errorf("%s: its kernel is %q, error %v", source, b, err)
		}
		got := archived(t, filepath.Join(filepath.Dir(i.Image.Root), boot.ExtraName))
		for _, m := range boot.ModuleNames {
			if want := map[bool]string{true: "module " + m}[m != "virtio"]; got["lib/modules/"+m+".ko"] != want {
				t.Errorf("%s: module %s is %q", source, m, got["lib/modules/"+m+".ko"])
			}
		}
		if list := strings.Fields(got["etc/banger/modules"]); len(list) != len(boot.ModuleNames)-1 || slices.Contains(list, "/lib/modules/virtio.ko") {
			t.Errorf("%s: modules to load: %q", source, list)
		}
	}
}

// archived gives the files of a cpio archive.
func archived(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string]string{}
	for r := cpio.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		var text []byte
		if err == nil {
			text, err = io.ReadAll(r)
		}
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(text)
	}
}

// What is no whole archive of one image fails with a sentence.
func TestDamagedDockerArchive(t *testing.T) {
	whole, err := os.ReadFile(dockerArchive(t, rootTarBytes(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		file []byte
		want string
	}{
		{bytes.Replace(whole, []byte(`"architecture":"`), []byte(`"architecturf":"`), 1), "it is damaged: configuration"},
		{bytes.Replace(whole, []byte("Config"), []byte("Donfig"), 1), "names no configuration"},
		{gzipped(whole), "compressed as a whole"},
		{tartest.Of(t, file("manifest.json", "[{},{}]")), "names no configuration"},
		{tartest.Of(t, file("other.json", "[]")), "not an archive of docker save"},
		{tartest.Of(t, file("manifest.json", "[]")), "it has no image for linux/amd64; it has nothing else"},
		{tartest.Of(t, file("manifest.json", "{")), "its manifest.json cannot be read"},
	} {
		path := filepath.Join(t.TempDir(), "x.tar")
		if err := os.WriteFile(path, c.file, 0o644); err != nil {
			t.Fatal(err)
		}
		i := built(t, "docker-archive:"+path)
		if i.Status != vmm.ImageFailed || !strings.Contains(i.Reason, c.want) {
			t.Errorf("want %q: %s %s", c.want, i.Status, i.Reason)
		}
	}
}

var file = tartest.File

// tarHeader is the header of a file of that size, without it.
func tarHeader(t *testing.T, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Size: size, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
