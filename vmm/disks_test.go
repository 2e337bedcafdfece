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

// imageSet is images by name.
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

func openImages(t *testing.T) (*vmm.Manager, imageSet) {
	set := imageSet{"builtin": {Name: "builtin", Memory: 1}}
	for _, name := range []string{"a", "b"} {
		set[name] = vmm.Image{Name: name, Memory: 1, Root: "/x", RootFormat: "raw", Digest: "sha256:" + name}
	}
	return openWith(t, t.TempDir(), newStore(), set), set
}

// An overlay is over the image that it was made over, and no other.
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
	if err := image("b"); !errors.Is(err, vmm.ErrBusy) || !strings.Contains(err.Error(), "write reset to its file restore") {
		t.Errorf("another image: %v", err)
	}
	set["a"] = vmm.Image{Name: "a", Memory: 1, Root: "/x", RootFormat: "raw", Digest: "sha256:new"}
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

// A VM does not run another image than before because somebody has replaced it.
func TestImageReplaced(t *testing.T) {
	ctx := context.Background()
	set := imageSet{"builtin": {Name: "builtin", Memory: 1, Digest: "sha256:1"}, "c": {Name: "c", Memory: 1, Digest: "sha256:c"},
		"a": {Name: "a", Memory: 1, Root: "/x", RootFormat: "raw", Digest: "sha256:a"}}
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
		if name == "builtin" { // whoever installs the daemon replaces it
			do(t, v, vmm.Start, nil)
			continue
		}
		// Also when the VMM, which its guest has taken over, has removed the system disk.
		if err := os.Remove(vmm.DiskPath(v.Snapshot().Dir, vmm.DiskOverlay)); err != nil && name == "a" {
			t.Fatal(err)
		}
		if err := v.Do(ctx, vmm.Start); !errors.Is(err, vmm.ErrBusy) || !strings.Contains(err.Error(), "write "+name+" to its file image") {
			t.Errorf("a start with a replaced image: %v", err)
		}
		if err := v.TakeSnapshot(ctx, "x", nil); name == "a" && !errors.Is(err, vmm.ErrBusy) {
			t.Errorf("a snapshot with a replaced image: %v", err)
		}
		// All settings written back are no wish for another image.
		if err := v.Configure(ctx, func(c *vmm.Config) error { c.CPUs = 3; return nil }); err != nil {
			t.Error(err)
		}
		do(t, v, vmm.Start, vmm.ErrBusy)
		if err := v.SetImage(ctx, name); err != nil {
			t.Error(err)
		}
		do(t, v, vmm.Start, nil)
		do(t, v, vmm.Kill, nil)
		replace(name, "sha256:third")
		do(t, v, vmm.Start, vmm.ErrBusy)
		// One that is chosen anew is remembered at its first start.
		if name == "c" {
			if err := errors.Join(v.SetImage(ctx, "a"), v.SetImage(ctx, "c")); err != nil {
				t.Error(err)
			}
			do(t, v, vmm.Start, nil)
		}
	}
}
