package vmm_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"banger/vmm"
	"banger/vmm/guest"
)

// imageSet has images by name.
type imageSet map[string]vmm.Image

func (s imageSet) Names() []string { return []string{"a", "b", "builtin"} }
func (s imageSet) Image(name string) (vmm.Image, error) {
	if i, ok := s[name]; ok {
		return i, nil
	}
	return vmm.Image{}, vmm.ErrNotFound
}
func (imageSet) Seed(string, vmm.NetMode, guest.Config) ([]byte, error) {
	return nil, vmm.ErrUnsupported
}

func withRoot(name, digest string) vmm.Image {
	return vmm.Image{Name: name, Memory: 1, Root: "/x", RootFormat: "raw", Digest: digest}
}

// refusedWith reports whether an error is ErrBusy and gives this advice.
func refusedWith(err error, advice string) bool {
	return errors.Is(err, vmm.ErrBusy) && strings.Contains(err.Error(), advice)
}

func openImages(t *testing.T) (*vmm.Manager, imageSet) {
	set := imageSet{"builtin": {Name: "builtin", Memory: 1}}
	for _, name := range []string{"a", "b"} {
		set[name] = withRoot(name, "sha256:"+name)
	}
	return openWith(t, t.TempDir(), newStore(), set), set
}

// An overlay is used with the image that it was made over, and no other.
func TestOverlayKeepsItsBase(t *testing.T) {
	ctx := context.Background()
	m, set := openImages(t)
	v, err := m.Create(ctx, "web", vmm.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	image := func(name string) error {
		return v.Configure(ctx, func(c *vmm.Config) error { c.Image = name; return nil })
	}
	if err := errors.Join(image("b"), image("a")); err != nil { // nothing is on it yet
		t.Fatal(err)
	}
	do(t, v, vmm.Start, nil)
	do(t, v, vmm.Kill, nil)
	if err := image("b"); !refusedWith(err, "write reset to its file restore") {
		t.Errorf("another image: %v", err)
	}
	set["a"] = withRoot("a", "sha256:new")
	do(t, v, vmm.Start, vmm.ErrBusy)
	if err := v.Restore(ctx, "reset"); err != nil {
		t.Fatal(err)
	}
	do(t, v, vmm.Start, nil)
	do(t, v, vmm.Kill, nil)
	if base := v.Snapshot().Base; base != "sha256:new" {
		t.Errorf("its base is %s", base)
	}
}

// A VM starts with a replaced image only if its owner says so.
func TestImageReplaced(t *testing.T) {
	ctx := context.Background()
	set := imageSet{
		"builtin": {Name: "builtin", Memory: 1, Digest: "sha256:1"},
		"c":       {Name: "c", Memory: 1, Digest: "sha256:c"},
		"a":       withRoot("a", "sha256:a"),
	}
	replace := func(name, digest string) {
		i := set[name]
		i.Digest = digest
		set[name] = i
	}
	m := openWith(t, t.TempDir(), newStore(), set)
	for _, name := range []string{"builtin", "c", "a"} {
		v, err := m.Create(ctx, "with-"+name, vmm.Owner{})
		if err != nil {
			t.Fatal(err)
		}
		if err := v.SetImage(ctx, name); err != nil {
			t.Fatal(err)
		}
		do(t, v, vmm.Start, nil)
		do(t, v, vmm.Kill, nil)
		do(t, v, vmm.Start, nil)
		do(t, v, vmm.Kill, nil)
		replace(name, "sha256:other")
		if name == "builtin" { // which an upgrade of the daemon replaces
			do(t, v, vmm.Start, nil)
			continue
		}
		// Also when the VMM, which its guest has taken over, has removed the system disk.
		err = os.Remove(vmm.DiskPath(v.Snapshot().Dir, vmm.DiskOverlay))
		if err != nil && name == "a" {
			t.Fatal(err)
		}
		if err := v.Do(ctx, vmm.Start); !refusedWith(err, "write "+name+" to its file image") {
			t.Errorf("a start with a replaced image: %v", err)
		}
		if err := v.TakeSnapshot(ctx, "x", nil); name == "a" && !errors.Is(err, vmm.ErrBusy) {
			t.Errorf("a snapshot with a replaced image: %v", err)
		}
		// A write of all settings does not choose the image again.
		configure(t, v, func(c *vmm.Config) { c.CPUs = 3 })
		do(t, v, vmm.Start, vmm.ErrBusy)
		if err := v.SetImage(ctx, name); err != nil {
			t.Error(err)
		}
		do(t, v, vmm.Start, nil)
		do(t, v, vmm.Kill, nil)
		replace(name, "sha256:third")
		do(t, v, vmm.Start, vmm.ErrBusy)
		// The digest of an image is recorded at the first start with it.
		if name == "c" {
			if err := errors.Join(v.SetImage(ctx, "a"), v.SetImage(ctx, "c")); err != nil {
				t.Error(err)
			}
			do(t, v, vmm.Start, nil)
		}
	}
}
