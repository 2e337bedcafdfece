package integration

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/rogpeppe/go-internal/testscript"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// ociCmd makes the tar of an OCI layout. Its one layer has the files of a directory, root's, and
// busybox at /bin/busybox, where the directory has a bin. The configuration is JSON of image-spec.
func ociCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: oci FILE DIR CONFIG")
	}
	file, dir := ts.MkAbs(args[0]), ts.MkAbs(args[1])
	if info, err := os.Lstat(filepath.Join(dir, "bin")); err == nil && info.IsDir() {
		ts.Check(ts.Exec("cp", "/bin/busybox", filepath.Join(dir, "bin/busybox")))
	}
	var config v1.Config
	ts.Check(json.Unmarshal([]byte(args[2]), &config))
	layer := file + ".layer"
	ts.Check(ts.Exec("tar", "-C", dir, "--owner=0", "--group=0", "-cf", layer, "."))
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return os.Open(layer) })
	ts.Check(err)
	img, err := mutate.AppendLayers(empty.Image, l)
	ts.Check(err)
	text, err := img.ConfigFile()
	ts.Check(err)
	text = text.DeepCopy()
	text.OS, text.Architecture, text.Config = "linux", runtime.GOARCH, config
	img, err = mutate.ConfigFile(img, text)
	ts.Check(err)
	at, err := os.MkdirTemp(filepath.Dir(file), "layout")
	ts.Check(err)
	path, err := layout.Write(at, empty.Index)
	ts.Check(err)
	ts.Check(path.AppendImage(img))
	ts.Check(exec.Command("tar", "-C", at, "-cf", file, ".").Run())
}
