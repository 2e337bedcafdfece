package vmm_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/host"
	"banger/internal/tartest"
	"banger/vmm"
)

// exported gives a VM's archive.
func exported(t *testing.T, v *vmm.VM) []byte {
	t.Helper()
	a, err := v.Export(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := io.ReadAll(io.NewSectionReader(a, 0, 1<<40))
	if err != nil {
		t.Fatal(err)
	}
	part := make([]byte, 700)
	if n, err := a.ReadAt(part, 400); n != len(part) || err != nil || !bytes.Equal(part, b[400:1100]) {
		t.Errorf("a part of it: %d, %v", n, err)
	}
	return b
}

func TestExportAndImport(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	m := open(t, dir, newStore())
	v := withDisk(t, m, "web", "quiet")
	if err := v.TakeSnapshot(ctx, "empty", nil); err != nil {
		t.Fatal(err)
	}
	put(t, v, "one")
	b := exported(t, v)
	put(t, v, "two")
	if left, _ := filepath.Glob(filepath.Join(v.Snapshot().Dir, "*.export")); left != nil {
		t.Errorf("left: %v", left)
	}
	if _, err := m.Import(ctx, "", vmm.Owner{}, bytes.NewReader(b)); !errors.Is(err, vmm.ErrExists) {
		t.Errorf("a name taken: %v", err)
	}
	// What follows the archive is not read.
	r := io.MultiReader(bytes.NewReader(b), strings.NewReader("more"))
	copied, err := m.Import(ctx, "copy", vmm.Owner{UID: 7}, r)
	if err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "more" {
		t.Errorf("%q is left to be read", rest)
	}
	s := copied.Snapshot()
	if s.Name != "copy" || get(t, copied, 3) != "one" || s.Config.Cmdline != "quiet" || s.Owner.UID != 7 || s.ID == v.Snapshot().ID || len(s.Saved) != 0 {
		t.Errorf("%+v has %q", s, get(t, copied, 3))
	}
	do(t, copied, vmm.Start, nil)
	if _, err := copied.Export(ctx); !errors.Is(err, vmm.ErrBusy) {
		t.Errorf("export of a running VM: %v", err)
	}
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := v.Export(stopped); !errors.Is(err, context.Canceled) {
		t.Errorf("export that nobody waits for: %v", err)
	}
}

func TestImportOfWhatIsNoArchive(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	m := open(t, dir, newStore())
	v := withDisk(t, m, "web", "")
	exported(t, v) // its disk is made for the first
	put(t, v, "content")
	whole := exported(t, v)
	about := `{"version":1,"name":"x","image":"builtin","image_digest":"","cpus":1,"memory":134217728,"disk":4096,"vmm":"fake","idle_timeout_nsec":-1,"disks":[`
	build := func(members ...string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := 0; i < len(members); i += 2 {
			if err := w.WriteHeader(&tar.Header{Name: members[i], Mode: 0o600, Size: int64(len(members[i+1]))}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(members[i+1])); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		return b.Bytes()
	}
	disk := func(name string) string {
		return about + `{"name":"` + name + `","size":1,"sha256":"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}]}`
	}
	for what, c := range map[string]struct {
		b    []byte
		want error
	}{
		"nothing":             {nil, vmm.ErrInvalid},
		"text":                {[]byte(strings.Repeat("text", 1000)), vmm.ErrInvalid},
		"cut short":           {whole[:len(whole)-1500], nil},
		"changed":             {bytes.Replace(whole, []byte("content"), []byte("contend"), 1), vmm.ErrInvalid},
		"another version":     {build("banger.json", `{"version":2}`), vmm.ErrInvalid},
		"another image":       {build("banger.json", strings.Replace(disk("overlay.img"), `t":""`, `t":"sha256:0"`, 1)), vmm.ErrNotFound},
		"no such image":       {build("banger.json", strings.Replace(about, `builtin","image_digest":""`, `none","image_digest":"sha256:0"`, 1)+"]}"), vmm.ErrNotFound},
		"too much memory":     {build("banger.json", strings.Replace(about, "134217728", "99999999999999999", 1)+"]}"), vmm.ErrInvalid},
		"a path":              {build("banger.json", disk("../../x"), "../../x", "x"), vmm.ErrInvalid},
		"a disk it has not":   {build("banger.json", disk("overlay.img"), "overlay.img", "x"), vmm.ErrInvalid},
		"more than it tells":  {build("banger.json", disk("work.qcow2"), "work.qcow2", "x", "more", ""), vmm.ErrInvalid},
		"another than told":   {build("banger.json", disk("work.qcow2"), "other", "x"), vmm.ErrInvalid},
		"a huge banger.json":  {build("banger.json", strings.Repeat(" ", 1<<20)), vmm.ErrInvalid},
		"a disk that is long": {build("banger.json", disk("work.qcow2"), "work.qcow2", "xx"), vmm.ErrInvalid},
	} {
		if _, err := m.Import(ctx, "copy", vmm.Owner{}, bytes.NewReader(c.b)); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := m.Import(ctx, "good", vmm.Owner{}, bytes.NewReader(build("banger.json", disk("work.qcow2"), "work.qcow2", "x"))); err != nil {
		t.Errorf("the one that is whole: %v", err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "vms"))
	if err != nil || len(entries) != 2 || m.VM("copy") != nil {
		t.Errorf("%d directories, %v", len(entries), err)
	}
}

// What an archive needs of its image: the same bytes where there is a system disk, any without a disk where there is none.
func TestImportNeedsItsImage(t *testing.T) {
	ctx := context.Background()
	m, _ := openImages(t)
	take := func(image, digest, disks string) (*vmm.VM, error) {
		about := `{"version":1,"name":"x","image":"` + image + `","image_digest":"` + digest + `","image_source":"oci:/srv/app.tar","cpus":1,"memory":134217728,"vmm":"fake","idle_timeout_nsec":-1,"disks":[` + disks + `]}`
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Name: "banger.json", Mode: 0o600, Size: int64(len(about))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, about); err != nil {
			t.Fatal(err)
		}
		w.Close()
		return m.Import(ctx, "", vmm.Owner{}, &b)
	}
	const overlay = `{"name":"overlay.img","size":0,"sha256":""}`
	for _, c := range []struct{ image, digest, disks, says string }{
		{"a", "sha256:old", overlay, `it needs the image "a" that is "sha256:old", made from "oci:/srv/app.tar", and the one of that name here is sha256:a: make an image`},
		{"none", "sha256:old", "", "there is none of that name here"},
		{"a", "sha256:old", "", "the one of that name here is sha256:a"}, // it had none, and would have one
		{"builtin", "sha256:old", overlay, "the one of that name here is "},
	} {
		if _, err := take(c.image, c.digest, c.disks); !errors.Is(err, vmm.ErrNotFound) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v", c, err)
		}
	}
	for _, c := range []struct{ image, digest, has string }{
		{"gone", "sha256:b", "b"},            // it is here by another name
		{"builtin", "sha256:old", "builtin"}, // of another version of banger
	} {
		v, err := take(c.image, c.digest, "")
		if err != nil {
			t.Errorf("%v: %v", c, err)
			continue
		}
		if got := v.Snapshot().Config.Image; got != c.has {
			t.Errorf("%v: it has the image %s", c, got)
		}
		if err := m.Remove(ctx, "x", nil); err != nil {
			t.Fatal(err)
		}
	}
}

// imageSet is images by name.
type imageSet map[string]vmm.Image

func (s imageSet) Names() []string { return []string{"a", "b", "builtin"} }
func (s imageSet) Image(name string) (vmm.Image, error) {
	if i, ok := s[name]; ok {
		return i, nil
	}
	return vmm.Image{}, vmm.ErrNotFound
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

// A few KiB do not become a disk of terabytes, and an import ends with its context.
func TestImportOfBombs(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	dir := t.TempDir()
	m := open(t, dir, newStore())
	about := func(size int64) []byte {
		text := fmt.Sprintf(`{"version":1,"name":"x","image":"builtin","image_digest":"","cpus":1,"memory":134217728,"disk":4096,"vmm":"fake","idle_timeout_nsec":-1,
			"disks":[{"name":"work.qcow2","size":%d,"sha256":""}]}`, size)
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Name: "banger.json", Mode: 0o600, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		_, err := io.WriteString(w, text)
		if err := errors.Join(err, w.Flush()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	const size = 1 << 40
	_, err := m.Import(ctx, "bomb", vmm.Owner{}, io.MultiReader(bytes.NewReader(about(size)), bytes.NewReader(tartest.Sparse(t, "work.qcow2", size))))
	if !errors.Is(err, vmm.ErrInvalid) || !strings.Contains(err.Error(), "sparse") {
		t.Errorf("a sparse disk: %v", err)
	}
	// The same terabyte of zeros, all of it sent.
	var head bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(&tar.Header{Name: "work.qcow2", Mode: 0o600, Size: size}); err != nil {
		t.Fatal(err)
	}
	stopped, stop := context.WithCancel(ctx)
	zeros := host.NewReader(ctx, zeroReader{}, func(int) { stop() })
	_, err = m.Import(stopped, "bomb", vmm.Owner{}, io.MultiReader(bytes.NewReader(about(size)), &head, zeros))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("an import that was cancelled: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "vms")); err != nil || len(entries) != 0 {
		t.Errorf("%d directories are left, error %v", len(entries), err)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// One user's imports that never end leave room for others', and there is a bound for all together.
func TestImportsAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	m := open(t, t.TempDir(), newStore())
	ended := make(chan error)
	begin := func(uid uint32) {
		r, w := io.Pipe()
		go func() {
			_, err := m.Import(ctx, "", vmm.Owner{UID: uid}, r)
			r.CloseWithError(errors.New("it has ended"))
			ended <- err
		}()
		if _, err := w.Write(make([]byte, 1)); err != nil { // it reads: it has begun
			t.Errorf("an import of uid %d: %v", uid, err)
		}
		context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })
	}
	refused := func(uid uint32) {
		t.Helper()
		if _, err := m.Import(ctx, "", vmm.Owner{UID: uid}, strings.NewReader("")); !errors.Is(err, vmm.ErrBusy) {
			t.Errorf("another import of uid %d: %v", uid, err)
		}
	}
	begun := 0
	for uid := range uint32(8) {
		for range 4 {
			begin(uid)
			begun++
		}
		refused(uid)
	}
	refused(8)
	cancel()
	for range begun {
		<-ended
	}
	if _, err := m.Import(context.Background(), "", vmm.Owner{UID: 1}, strings.NewReader("")); !errors.Is(err, vmm.ErrInvalid) {
		t.Errorf("after the others have ended: %v", err)
	}
}
