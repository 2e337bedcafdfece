package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/vmm"
)

// newDisks returns a bench with a work disk of 8 MiB, and an overlay over 3 MiB. They belong to the
// VM's own user where the test may have one.
func newDisks(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	base := filepath.Join(b.spec.StateDir, "base.img")
	if err := os.WriteFile(base, bytes.Repeat([]byte("base"), 3<<18), 0o644); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		b.runAsOther(t)
	}
	b.spec.Disks = []vmm.Disk{
		overlayDisk(b.spec.Dir, base, "raw"),
		{Path: vmm.DiskPath(b.spec.Dir, vmm.DiskWork), Format: qcow2, Size: 8 << 20},
	}
	return b
}

// output runs a program and returns its output.
func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", program, args, err, out)
	}
	return string(out)
}

// qemuIO returns the output of a command of qemu-io(1) on a disk.
func qemuIO(t *testing.T, path, command string) string {
	t.Helper()
	return output(t, "qemu-io", "-f", "qcow2", "-c", command, path)
}

// filled reports whether the bytes at the beginning of both disks have that value.
func (b *bench) filled(t *testing.T, value int) bool {
	t.Helper()
	same := true
	for _, d := range b.spec.Disks {
		out := qemuIO(t, d.Path, fmt.Sprintf("read -P %d 1M 64k", value))
		same = same && !strings.Contains(out, "verification failed")
	}
	return same
}

func (b *bench) fill(t *testing.T, value int) {
	t.Helper()
	for _, d := range b.spec.Disks {
		qemuIO(t, d.Path, fmt.Sprintf("write -P %d 1M 64k", value))
	}
}

func TestDisksAreMadeAndGrown(t *testing.T) {
	b := newDisks(t)
	ctx := within(t, time.Minute)
	for range 2 { // the second time there is nothing to do
		if err := b.MakeDisks(ctx, b.spec); err != nil {
			t.Fatal(err)
		}
	}
	work := b.spec.Disks[1].Path
	raw := filepath.Join(t.TempDir(), "raw")
	output(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", work, raw)
	if out, err := exec.Command("e2fsck", "-fn", raw).CombinedOutput(); err != nil {
		t.Errorf("the new file system: %v: %s", err, out)
	}
	b.spec.Disks[1].Size = 20<<20 + 1
	if err := b.MakeDisks(ctx, b.spec); err != nil {
		t.Fatal(err)
	}
	if n, err := virtualSize(b.spec.Disks[1], b.spec.UID); n != 20<<20+512 || err != nil {
		t.Errorf("grown to %d, %v", n, err)
	}
	entries, err := os.ReadDir(vmm.DisksDir(b.spec.Dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".new") || strings.HasSuffix(e.Name(), ".raw") {
			t.Errorf("left: %s", e.Name())
		}
	}
}

func TestDisksTooSmallOrTooLargeForTheirFileSystem(t *testing.T) {
	b := newDisks(t)
	for _, size := range []int64{4096, 1 << 40} {
		path := vmm.DiskPath(b.spec.Dir, decimal(size))
		b.spec.Disks = []vmm.Disk{{Path: path, Format: qcow2, Size: size}}
		if err := b.MakeDisks(within(t, time.Minute), b.spec); err != nil {
			t.Fatal(err)
		}
		if n, err := virtualSize(b.spec.Disks[0], b.spec.UID); n != size || err != nil {
			t.Errorf("%d bytes, %v; want %d", n, err, size)
		}
		if n := vmm.DiskBytes(b.spec.Disks[0].Path); n > 16<<20 {
			t.Errorf("a disk of %d bytes takes %d", size, n)
		}
	}
}

func TestRawDiskOfAnEarlierBanger(t *testing.T) {
	b := newDisks(t)
	raw := vmm.DiskPath(b.spec.Dir, vmm.DiskRaw)
	// The guest wrote the header of a disk over a file of the host, which nobody may believe.
	text := append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 1<<20)...)
	if err := os.WriteFile(raw, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(raw, b.spec.UID, b.spec.GID); err != nil {
		t.Fatal(err)
	}
	if err := b.MakeDisks(within(t, time.Minute), b.spec); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(raw); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the raw disk is still there: %v", err)
	}
	out := qemuIO(t, b.spec.Disks[1].Path, "read -v 0 8")
	if !strings.Contains(out, "51 46 49 fb 00 00 00 03") {
		t.Errorf("its content is not the raw one's: %s", out)
	}
	if n, _ := virtualSize(b.spec.Disks[1], b.spec.UID); n != 8<<20 {
		t.Errorf("%d bytes", n)
	}
}

func TestSnapshotsOfRestingDisks(t *testing.T) {
	b := newDisks(t)
	ctx := within(t, time.Minute)
	if err := b.MakeDisks(ctx, b.spec); err != nil {
		t.Fatal(err)
	}
	disks := b.Disks(b.spec)
	b.fill(t, 1)
	if err := disks.TakeSnapshot(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	b.fill(t, 2)
	b.spec.Disks[1].Size = 16 << 20 // a snapshot survives the growth of its disk
	if err := b.MakeDisks(ctx, b.spec); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.RestoreDisks(ctx, b.spec, "one"); err != nil || !b.filled(t, 1) {
			t.Fatalf("not restored: %v", err)
		}
	}
	for range 2 {
		if err := disks.DropSnapshot(ctx, "one"); err != nil {
			t.Fatal(err)
		}
	}
	err := b.RestoreDisks(ctx, b.spec, "one")
	if !errors.Is(err, vmm.ErrNotFound) || !b.filled(t, 1) {
		t.Errorf("restore of a dropped snapshot: %v", err)
	}
	// A cancelled program is not left running.
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := disks.TakeSnapshot(cancelled, "two"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestDisksAreExportedAndImported(t *testing.T) {
	b := newDisks(t)
	ctx := within(t, time.Minute)
	if err := b.MakeDisks(ctx, b.spec); err != nil {
		t.Fatal(err)
	}
	b.fill(t, 7)
	if err := b.Disks(b.spec).TakeSnapshot(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	for _, d := range b.spec.Disks {
		f, err := b.ExportDisk(ctx, b.spec, d)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(text, []byte(b.spec.StateDir)) {
			t.Errorf("%s reveals its path", filepath.Base(d.Path))
		}
		if err := os.WriteFile(d.Path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.ImportDisks(ctx, b.spec); err != nil || !b.filled(t, 7) {
		t.Fatalf("not as it was: %v", err)
	}
	out := qemuIO(t, b.spec.Disks[0].Path, "read -v 0 8")
	if !strings.Contains(out, "62 61 73 65") {
		t.Errorf("nothing of the base is seen: %s", out)
	}
	if left, _ := filepath.Glob(vmm.DiskPath(b.spec.Dir, "*.export")); left != nil {
		t.Errorf("left: %v", left)
	}
}

func TestImportOfHostileDisks(t *testing.T) {
	b := newDisks(t)
	ctx := within(t, time.Minute)
	secret := filepath.Join(t.TempDir(), "secret") // without commas
	if err := os.WriteFile(secret, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	work := b.spec.Disks[1].Path
	b.spec.Disks = b.spec.Disks[1:]
	const create = "qemu-img create -q -f qcow2 "
	for what, script := range map[string]string{
		"a backing file": create + "-b " + secret + " -F raw $0",
		"a data file":    create + "-o data_file=" + secret + ",data_file_raw=on $0 1M",
		"snapshots":      create + "$0 1M && qemu-img snapshot -c one $0",
		"an old version": create + "-o compat=0.10 $0 1M",
		"too long":       create + "$0 17T",
		"raw":            "truncate -s 1M $0",
		"a broken table": create + "$0 1M && qemu-io -c 'write 0 64k' $0 >/dev/null && " +
			`printf '\377\377\377\377\377\377\376\000' | ` +
			"dd of=$0 bs=1 seek=262144 conv=notrunc status=none",
		"nothing":          ": > $0",
		"a link to a file": "ln -sf " + secret + " $0",
	} {
		if err := os.RemoveAll(work); err != nil {
			t.Fatal(err)
		}
		output(t, "bash", "-c", script, work)
		if err := os.Lchown(work, b.spec.UID, b.spec.GID); err != nil {
			t.Fatal(err)
		}
		if err := b.ImportDisks(ctx, b.spec); !errors.Is(err, vmm.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A VMM that its guest took over may leave any disk. It is opened with that VMM's rights, so that
// no other user's file gets into it.
func TestHostileDiskReadsNothingOfTheHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root runs VMMs as other users: run the suite as root")
	}
	b := newDisks(t)
	secret := filepath.Join(t.TempDir(), "secret") // without commas
	if err := os.WriteFile(secret, bytes.Repeat([]byte("secret"), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	work := b.spec.Disks[1].Path
	b.spec.Disks = b.spec.Disks[1:]
	const create = "qemu-img create -q -f qcow2 "
	for _, c := range []struct{ what, script, want string }{
		{"a backing file", create + "-b " + secret + " -F raw $0 8M", ""}, // which nobody opens
		{"a data file", create + "-o data_file=" + secret + ",data_file_raw=on $0 8M",
			"Permission denied"},
		{"a link", "ln -s " + secret + " $0", "Permission denied"},
	} {
		kept, err := os.ReadFile(secret)
		if err != nil {
			t.Fatal(err)
		}
		output(t, "bash", "-c", "rm -f $0; "+c.script, work)
		err = errors.Join(os.Lchown(work, testUID, testUID), os.WriteFile(secret, kept, 0o600))
		if err != nil {
			t.Fatal(err)
		}
		f, err := b.ExportDisk(within(t, time.Minute), b.spec, b.spec.Disks[0])
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v; want %q", c.what, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		raw := filepath.Join(t.TempDir(), "raw")
		exported := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
		output(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", exported, raw)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(raw)
		if err != nil || bytes.Contains(text, []byte("secret")) || len(text) != 8<<20 {
			t.Errorf("%s: %d bytes with the secret in them, %v", c.what, len(text), err)
		}
	}
}

// liveSnapshots takes and drops snapshots while the machine runs, and grows its disk.
func liveSnapshots(t *testing.T, ctx context.Context, b *bench, m *Machine) {
	t.Helper()
	for _, tag := range []string{"one", "two"} {
		if err := m.TakeSnapshot(ctx, tag); err != nil {
			t.Fatal(err)
		}
	}
	// One disk has this snapshot already: the other must not get it.
	half := snapshotOf(namedNode{Name: overlayNode}, "half")
	if err := m.call(ctx, "blockdev-snapshot-internal-sync", half, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.TakeSnapshot(ctx, "half"); err == nil {
		t.Error("a tag is taken twice")
	}
	nodes, err := m.nodes(ctx)
	if err != nil || len(nodes) != 2 {
		t.Fatalf("%d disks, %v", len(nodes), err)
	}
	for _, n := range nodes {
		isOverlay := n.Name == overlayNode
		if !n.Image.has("one") || !n.Image.has("two") || n.Image.has("half") != isOverlay {
			t.Errorf("%+v", n)
		}
	}
	for _, tag := range []string{"one", "half", "none"} {
		if err := m.DropSnapshot(ctx, tag); err != nil {
			t.Error(err)
		}
	}
	if err := m.GrowDisk(ctx, 9<<20+1); err != nil {
		t.Error(err)
	}
	work := vmm.Disk{Path: vmm.DiskPath(b.spec.Dir, vmm.DiskWork), Format: qcow2}
	if n, err := virtualSize(work, b.spec.UID); n != 9<<20+512 || err != nil {
		t.Errorf("grown to %d, %v", n, err)
	}
}
