package fs

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestMounts(t *testing.T) {
	got := Mounts([]byte(`36 35 98:0 / /a\040b rw,noatime shared:1 - fuse.banger banger rw
37 35 98:0 / /c rw - fuse.sshfs banger rw
38 35 98:0 / /d rw - fuse banger rw
39 35 0:5 / /e rw master:1 - ext4 /dev/sda rw
junk
`))
	if want := []string{"/a b", "/d"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// A mount is recognised through symbolic links; a plain directory is none.
func TestMounted(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if mounted(dir) || mounted(filepath.Join(dir, "link")) || mounted(filepath.Join(dir, "none")) {
		t.Error("a directory that is no mount is taken for one")
	}
}
