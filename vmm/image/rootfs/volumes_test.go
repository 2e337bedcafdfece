package rootfs

import (
	"archive/tar"
	"context"
	"strings"
	"testing"

	"banger/internal/tartest"
)

// TestVolumes makes the directories of volumes that are in no layer.
func TestVolumes(t *testing.T) {
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	layer := tartest.Of(t, file("etc/file", "x"), file("srv/kept/x", "x"), link("lib", "/data/../data"),
		link("srv/up", "../../new"), link("loop", "loop"),
		tar.Header{Name: "own", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 7})
	r, err := Read(context.Background(), layersOf(layer), testLimits, nothing)
	if err != nil {
		t.Fatal(err)
	}
	made := []string{"/", "/run", "/tmp", "/lib/mysql", "/own", "/srv/kept", "/srv/up/y", "/var/lib/db"}
	if err := r.MakeVolumes(made); err != nil {
		t.Fatal(err)
	}
	want := `/data 40755
/data/mysql 40755
/etc 40755
/etc/file 100644
/lib 120777 /data/../data
/loop 120777 loop
/new 40755
/new/y 40755
/own 40700
/srv 40755
/srv/kept 40755
/srv/kept/x 100644
/srv/up 120777 ../../new
/var 40755
/var/lib 40755
/var/lib/db 40755
`
	if got := list(r.tree); got != want {
		t.Errorf("got\n%s", got)
	}
	for path, want := range map[string]string{
		"/etc/file":                    "a file is in the place of a directory: ",
		"/etc/file/x":                  "a file is in the place of a directory: ",
		"/loop/x":                      "symbolic links lead in a circle: ",
		"/" + strings.Repeat("n", 300): "a name of 300 bytes, ",
	} {
		err := r.MakeVolumes([]string{path})
		if err == nil || !strings.HasPrefix(err.Error(), "cannot make its volume ") ||
			!strings.Contains(err.Error(), ": "+want) {
			t.Errorf("%.20s: %v", path, err)
		}
	}
	if got := list(r.tree); got != want {
		t.Errorf("what cannot be made has left\n%s", got)
	}
}
