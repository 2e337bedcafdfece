package archive_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/host"
	"banger/internal/tartest"
	"banger/vmm"
	"banger/vmm/archive"
	"banger/vmm/fake"
	"banger/vmm/network"
	"banger/vmm/store"
)

// daemon is a Manager of fake VMs with its archives.
type daemon struct {
	*archive.Archives
	manager *vmm.Manager
	dir     string
}

// images are "builtin", and "a" and "b", which have a disk.
type images struct{ vmm.Images }

func (images) Names() []string { return []string{"a", "b", "builtin"} }

func (images) Image(name string) (vmm.Image, error) {
	switch name {
	case "builtin":
		return vmm.Image{Name: name, Memory: 1}, nil
	case "a", "b":
		return vmm.Image{Name: name, Memory: 1, Root: "/x", RootFormat: "raw",
			Digest: "sha256:" + name}, nil
	}
	return vmm.Image{}, vmm.ErrNotFound
}

func open(t *testing.T) *daemon {
	t.Helper()
	ctx, dir := context.Background(), t.TempDir()
	records, err := store.Open(ctx, filepath.Join(dir, "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := vmm.Open(ctx, vmm.Options{
		StateDir: dir, Store: records, Drivers: []vmm.Driver{fake.New()},
		Network: network.Unprivileged(), Images: images{}, Log: slog.New(slog.DiscardHandler),
		Defaults: vmm.Config{Image: "builtin", CPUs: 1, VMM: "fake", Net: vmm.NetNone,
			IdleTimeout: vmm.NoLimit, StopTimeout: time.Second},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	o := archive.Options{Manager: m, Images: images{}, Jobs: host.NewJobs(0)}
	return &daemon{archive.New(o), m, dir}
}

// web returns a VM of that name with a disk.
func (d *daemon) web(t *testing.T, cmdline string) *vmm.VM {
	t.Helper()
	ctx := context.Background()
	v, err := d.manager.Create(ctx, "web", vmm.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	err = v.Configure(ctx, func(c *vmm.Config) error {
		c.Disk, c.Cmdline = 1<<20, cmdline
		return nil
	})
	if err == nil { // makes the disk
		err = v.TakeSnapshot(ctx, "empty", nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// directories returns how many VMs have a directory.
func (d *daemon) directories(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(d.dir, "vms"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// put overwrites the beginning of a VM's disk, get reads it.
func put(t *testing.T, v *vmm.VM, text string) {
	t.Helper()
	f, err := os.OpenFile(work(v), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, v *vmm.VM, n int) string {
	t.Helper()
	b, err := os.ReadFile(work(v))
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func work(v *vmm.VM) string { return vmm.DiskPath(v.Snapshot().Dir, vmm.DiskWork) }

// exported returns a VM's archive.
func (d *daemon) exported(t *testing.T, v *vmm.VM) []byte {
	t.Helper()
	a, err := d.Export(context.Background(), v)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := io.ReadAll(io.NewSectionReader(a, 0, 1<<40))
	if err != nil {
		t.Fatal(err)
	}
	part := make([]byte, 700)
	n, err := a.ReadAt(part, 400)
	if n != len(part) || err != nil || !bytes.Equal(part, b[400:1100]) {
		t.Errorf("a part of it: %d, %v", n, err)
	}
	return b
}

// tarOf returns a tar of members, each a name and its content.
func tarOf(t *testing.T, members ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(members); i += 2 {
		b.Write(header(t, members[i], int64(len(members[i+1]))))
		b.WriteString(members[i+1])
		b.Write(make([]byte, (512-len(members[i+1])%512)%512))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func header(t *testing.T, name string, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	h := &tar.Header{Name: name, Mode: 0o600, Size: size}
	if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// manifest returns a banger.json for an image and its digest, and for disks as JSON.
func manifest(image, digest, disks string) string {
	return fmt.Sprintf(`{"version":1,"name":"x","image":%q,"image_digest":%q,`+
		`"image_source":"oci:/srv/app.tar","cpus":1,"memory":134217728,"disk":4096,"vmm":"fake",`+
		`"idle_timeout_nsec":-1,"disks":[%s]}`, image, digest, disks)
}

func TestExportAndImport(t *testing.T) {
	ctx := context.Background()
	d := open(t)
	v := d.web(t, "quiet")
	put(t, v, "one")
	b := d.exported(t, v)
	put(t, v, "two")
	if left, _ := filepath.Glob(filepath.Join(v.Snapshot().Dir, "*.export")); left != nil {
		t.Errorf("left: %v", left)
	}
	_, err := d.Import(ctx, "", vmm.Owner{}, bytes.NewReader(b))
	if !errors.Is(err, vmm.ErrExists) {
		t.Errorf("a name of another VM: %v", err)
	}
	// What follows the archive is not read.
	r := io.MultiReader(bytes.NewReader(b), strings.NewReader("more"))
	copied, err := d.Import(ctx, "copy", vmm.Owner{UID: 7}, r)
	if err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "more" {
		t.Errorf("%q is left to be read", rest)
	}
	s := copied.Snapshot()
	if s.Name != "copy" || s.Config.Cmdline != "quiet" || s.Owner.UID != 7 ||
		s.ID == v.Snapshot().ID || len(s.Saved) != 0 || get(t, copied, 3) != "one" {
		t.Errorf("%+v has %q", s, get(t, copied, 3))
	}
	if err := copied.Do(ctx, vmm.Start); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Export(ctx, copied); !errors.Is(err, vmm.ErrBusy) {
		t.Errorf("export of a running VM: %v", err)
	}
	if err := copied.Do(ctx, vmm.Kill); err != nil {
		t.Fatal(err)
	}
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := d.Export(stopped, v); !errors.Is(err, context.Canceled) {
		t.Errorf("export without a waiter: %v", err)
	}
}

func TestImportOfWhatIsNoArchive(t *testing.T) {
	ctx := context.Background()
	d := open(t)
	v := d.web(t, "")
	put(t, v, "content")
	whole := d.exported(t, v)
	none := manifest("builtin", "", "")
	one := func(name string) string {
		const digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
		return manifest("builtin", "", `{"name":"`+name+`","size":1,"sha256":"`+digest+`"}`)
	}
	refused := func(what string, want error, b []byte) {
		t.Helper()
		_, err := d.Import(ctx, "copy", vmm.Owner{}, bytes.NewReader(b))
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	changed := bytes.Replace(whole, []byte("content"), []byte("contend"), 1)
	refused("nothing", vmm.ErrInvalid, nil)
	refused("text", vmm.ErrInvalid, []byte(strings.Repeat("text", 1000)))
	refused("an archive cut short", nil, whole[:len(whole)-1500])
	refused("a changed disk", vmm.ErrInvalid, changed)
	for _, c := range []struct {
		what    string
		want    error
		about   string
		members []string
	}{
		{"another version", vmm.ErrInvalid, `{"version":2}`, nil},
		{"another image", vmm.ErrNotFound,
			strings.Replace(one("overlay.img"), `t":""`, `t":"sha256:0"`, 1), nil},
		{"no such image", vmm.ErrNotFound, manifest("none", "sha256:0", ""), nil},
		{"too much memory", vmm.ErrInvalid,
			strings.Replace(none, "134217728", "99999999999999999", 1), nil},
		{"a path", vmm.ErrInvalid, one("../../x"), []string{"../../x", "x"}},
		{"a disk of no VM", vmm.ErrInvalid, one("overlay.img"), []string{"overlay.img", "x"}},
		{"a member too many", vmm.ErrInvalid, one("work.qcow2"), []string{"work.qcow2", "x", "more", ""}},
		{"another member", vmm.ErrInvalid, one("work.qcow2"), []string{"other", "x"}},
		{"a longer disk", vmm.ErrInvalid, one("work.qcow2"), []string{"work.qcow2", "xx"}},
		{"a huge banger.json", vmm.ErrInvalid, strings.Repeat(" ", 1<<20), nil},
	} {
		refused(c.what, c.want, tarOf(t, append([]string{"banger.json", c.about}, c.members...)...))
	}
	good := tarOf(t, "banger.json", one("work.qcow2"), "work.qcow2", "x")
	if _, err := d.Import(ctx, "good", vmm.Owner{}, bytes.NewReader(good)); err != nil {
		t.Errorf("a whole archive: %v", err)
	}
	if n := d.directories(t); n != 2 || d.manager.VM("copy") != nil {
		t.Errorf("%d directories", n)
	}
}

// A system disk needs its image's very bytes. A VM without one needs any image without a disk.
func TestImportNeedsItsImage(t *testing.T) {
	ctx := context.Background()
	d := open(t)
	load := func(image, digest, disks string) (*vmm.VM, error) {
		b := tarOf(t, "banger.json", manifest(image, digest, disks))
		return d.Import(ctx, "", vmm.Owner{}, bytes.NewReader(b))
	}
	const overlay = `{"name":"overlay.img","size":0,"sha256":""}`
	for _, c := range []struct{ image, digest, disks, says string }{
		{"a", "sha256:old", overlay, `it needs the image "a" of digest "sha256:old", ` +
			`made from "oci:/srv/app.tar", and the image of that name has "sha256:a" here: make`},
		{"none", "sha256:old", "", "no image has that name here"},
		{"a", "sha256:old", "", `the image of that name has "sha256:a" here`}, // which has a disk
		{"builtin", "sha256:old", overlay, `the image of that name has "" here`},
	} {
		_, err := load(c.image, c.digest, c.disks)
		if !errors.Is(err, vmm.ErrNotFound) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v", c, err)
		}
	}
	for _, c := range []struct{ image, digest, has string }{
		{"gone", "sha256:b", "b"},            // it has another name here
		{"builtin", "sha256:old", "builtin"}, // of another version of banger
	} {
		v, err := load(c.image, c.digest, "")
		if err != nil {
			t.Errorf("%v: %v", c, err)
			continue
		}
		if got := v.Snapshot().Config.Image; got != c.has {
			t.Errorf("%v: it has the image %s", c, got)
		}
		if err := d.manager.Remove(ctx, "x", nil); err != nil {
			t.Fatal(err)
		}
	}
}

// A few KiB do not become a disk of terabytes, and an import ends with its context.
func TestImportOfBombs(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	d := open(t)
	const size = 1 << 40
	work := fmt.Sprintf(`{"name":"work.qcow2","size":%d,"sha256":""}`, size)
	text := manifest("builtin", "", work)
	about := bytes.TrimRight(tarOf(t, "banger.json", text), "\x00")
	about = append(about, make([]byte, (512-len(about)%512)%512)...) // without the tar's end
	bomb := bytes.NewReader(tartest.Sparse(t, "work.qcow2", size))
	_, err := d.Import(ctx, "bomb", vmm.Owner{}, io.MultiReader(bytes.NewReader(about), bomb))
	if !errors.Is(err, vmm.ErrInvalid) || !strings.Contains(err.Error(), "sparse") {
		t.Errorf("a sparse disk: %v", err)
	}
	// The same terabyte of zeros, all of it sent.
	stopped, stop := context.WithCancel(ctx)
	endless := host.NewReader(ctx, zeros{}, func(int) { stop() })
	_, err = d.Import(stopped, "bomb", vmm.Owner{}, io.MultiReader(
		bytes.NewReader(about), bytes.NewReader(header(t, "work.qcow2", size)), endless))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("an import that was cancelled: %v", err)
	}
	if n := d.directories(t); n != 0 {
		t.Errorf("%d directories are left", n)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// One user's imports that never end leave room for others', and there is a bound for all together.
func TestImportsAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	d := open(t)
	ended := make(chan error)
	begin := func(uid uint32) {
		r, w := io.Pipe()
		go func() {
			_, err := d.Import(ctx, "", vmm.Owner{UID: uid}, r)
			r.CloseWithError(errors.New("it has ended"))
			ended <- err
		}()
		if _, err := w.Write(make([]byte, 1)); err != nil { // it reads: it has begun
			t.Errorf("an import of uid %d: %v", uid, err)
		}
		context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })
	}
	refused := func(uid uint32, want error) {
		t.Helper()
		_, err := d.Import(context.Background(), "", vmm.Owner{UID: uid}, strings.NewReader(""))
		if !errors.Is(err, want) {
			t.Errorf("another import of uid %d: %v", uid, err)
		}
	}
	begun := 0
	for uid := range uint32(8) {
		for range 4 {
			begin(uid)
			begun++
		}
		refused(uid, vmm.ErrBusy)
	}
	refused(8, vmm.ErrBusy)
	cancel()
	for range begun {
		<-ended
	}
	refused(1, vmm.ErrInvalid) // for what it is: there is room again
}
