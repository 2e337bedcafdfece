package integration

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// webImage returns an image of two layers, in which busybox serves a page on port 8080 as the user
// web.
func webImage(t *testing.T, page string) v1.Image {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	must(t, err)
	img, err := mutate.AppendLayers(empty.Image,
		tarLayer(t, map[string]string{"bin/httpd": string(busybox), "bin/sh": "-> httpd",
			"bin/sha256sum": "-> httpd", "www/gone": "x",
			"etc/passwd": "web:x:1000:1000::/www:/bin/false\n"}),
		tarLayer(t, map[string]string{"www/.wh.gone": "", "www/index.html": page + "\n"}))
	must(t, err)
	config, err := img.ConfigFile()
	must(t, err)
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{Entrypoint: []string{"httpd", "-f"}, Cmd: []string{"-p", "8080"},
		WorkingDir: "/www", User: "web", Env: []string{"PATH=/bin", "GREETING=hello"}}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// tarLayer returns a layer of these files. A text that begins with an arrow makes a symbolic link.
func tarLayer(t *testing.T, files map[string]string) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range files {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(text))}
		if to, ok := strings.CutPrefix(text, "-> "); ok {
			h.Typeflag, h.Size, h.Linkname, text = tar.TypeSymlink, 0, to, ""
		}
		must(t, w.WriteHeader(h))
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	must(t, w.Close())
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.Bytes())), nil
	})
	must(t, err)
	return l
}

// writeLayout writes an image as the tar of an OCI layout.
func writeLayout(t *testing.T, file string, img v1.Image) {
	t.Helper()
	dir := t.TempDir()
	l, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = l.AppendImage(img)
	}
	must(t, err)
	if out, err := exec.Command("tar", "-C", dir, "-cf", file, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
