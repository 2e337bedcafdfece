package image

import (
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/host"
	"banger/vmm"
)

// buildDisk makes an image of the disk and gives what became of it.
func buildDisk(t *testing.T, s *Set, name, path string) vmm.ImageInfo {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	i, err := s.Create(ctx, name, vmm.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := s.Build(ctx, i.Number, "disk:"+path, vmm.Caller{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Root: root, Dir: root}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(ctx, i.Number); ctx.Err() != nil {
		t.Fatal(err)
	}
	i, _ = s.Info(i.Number)
	return i
}

func TestDisk(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("apt install qemu-utils")
	}
	dir := t.TempDir()
	s, err := Open(Options{Dir: filepath.Join(dir, "images"), Jobs: host.NewJobs(1879048192), Limits: Limits{Bytes: 8 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	raw := filepath.Join(dir, "a.raw")
	data := make([]byte, 3<<20)
	copy(data[1<<20:], "in the middle")
	if err := os.WriteFile(raw, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(raw, 64<<20); err != nil {
		t.Fatal(err)
	}
	img := func(args ...string) string {
		path := filepath.Join(dir, args[0])
		args = append(append([]string{}, args[1:]...), path)
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %v: %v %s", args, err, out)
		}
		return path
	}
	good := img("good.qcow2", "convert", "-c", "-O", "qcow2", raw)
	for name, path := range map[string]string{"raw": raw, "qcow2": good} {
		i := buildDisk(t, s, name, path)
		if i.Status != vmm.ImageReady || !i.Firmware || i.RootFormat != name || i.Memory != 512<<20 || i.Kernel != "" {
			t.Fatalf("%s: %+v", name, i)
		}
		if out, err := exec.Command("sha256sum", path).Output(); err != nil || i.Digest != "sha256:"+string(out[:64]) {
			t.Errorf("%s: digest %s, sha256sum says %s (%v)", name, i.Digest, out, err)
		}
		if i.Size <= 0 || i.Size > 4<<20 {
			t.Errorf("%s takes %d bytes", name, i.Size)
		}
		if out, err := exec.Command("qemu-img", "compare", "-f", "raw", "-F", name, raw, i.Root).CombinedOutput(); err != nil {
			t.Errorf("%s differs: %s", name, out)
		}
	}
	// A raw disk may begin with whatever its guest wrote there.
	sly := filepath.Join(dir, "sly.raw")
	text, err := os.ReadFile(img("backed.qcow2", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", raw))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sly, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if i := buildDisk(t, s, "sly", sly); i.Status != vmm.ImageReady || i.RootFormat != "raw" {
		t.Errorf("sly: %+v", i)
	}
	edit := func(name string, change func([]byte)) string {
		b, err := os.ReadFile(good)
		if err != nil {
			t.Fatal(err)
		}
		change(b)
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	full := filepath.Join(dir, "full.raw")
	if err := os.WriteFile(full, []byte(strings.Repeat("x", 9<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ path, reason string }{
		"backed":    {filepath.Join(dir, "backed.qcow2"), "overlay of another disk"},
		"data":      {edit("data.qcow2", func(b []byte) { b[79] |= 4 }), "another file"},
		"encrypted": {edit("encrypted.qcow2", func(b []byte) { b[35] = 1 }), "encrypted"},
		"huge":      {edit("huge.qcow2", func(b []byte) { binary.BigEndian.PutUint64(b[24:], 1<<50) }), "would see more"},
		"version":   {edit("version.qcow2", func(b []byte) { b[7] = 9 }), "damaged"},
		"table":     {edit("table.qcow2", func(b []byte) { b[47] = 1 }), "qemu-img cannot read it"},
		"short":     {edit("short.img", func(b []byte) { copy(b[4:], b[72:104]) }), "damaged"},
		"no":        {img("no.qcow2", "convert", "-O", "raw", raw), "it is none"},
		"full":      {full, "image_max_size"},
		"dir":       {dir, "is a directory"},
	} {
		if i := buildDisk(t, s, name, c.path); i.Status != vmm.ImageFailed || !strings.Contains(i.Reason, c.reason) {
			t.Errorf("%s: %s %q, want %q", name, i.Status, i.Reason, c.reason)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "images", blobsName, builtName, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("builds left %v (%v)", left, err)
	}
}

func TestPercents(t *testing.T) {
	var got []float64
	p := percents(func(v float64) { got = append(got, v) })
	for _, s := range []string{"    (0.00/100%)\r", "", "(1.00/100%)\r    (2.50/100%)\r", "(nan/100%)", "(1e9/100%)", "(7"} {
		if n, err := p.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	if len(got) != 3 || got[1] != 2.5 || got[2] != 7 {
		t.Errorf("%v", got)
	}
}
