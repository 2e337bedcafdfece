package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/host"
)

// rawDisk makes a small raw disk that boots by itself, without an agent; see testdata/rawdisk.sh.
func rawDisk(t *testing.T) string {
	t.Helper()
	kernels, _ := filepath.Glob(filepath.Join(module, ".cache", "image", "kernel", "*.deb"))
	if len(kernels) == 0 {
		t.Skip("make image")
	}
	file := filepath.Join(t.TempDir(), "small.raw")
	kernel := kernels[len(kernels)-1]
	out, err := exec.Command("sh", "testdata/rawdisk.sh", file, kernel).CombinedOutput()
	if err != nil {
		t.Fatalf("cannot make a disk (make test-deps): %v\n%s", err, out)
	}
	return file
}

// TestRawDisk boots VMs of a raw disk without an agent. Each writes to a qcow2 over the disk, which
// is snapshotted while the guest runs, restored, exported and imported. The image never changes.
// A reboot starts the VM again. The power button stops a VM by its init, the time limit of a stop ends a VM without one.
func TestRawDisk(t *testing.T) {
	t.Parallel()
	needRealVMs(t)
	d := testDaemon(t, "qemu")
	d.build(t, "small", "disk:"+rawDisk(t))
	base := filepath.Join(d.state, "images", "small", "root.raw")
	before, err := host.FileSHA256(base)
	must(t, err)
	says := func(vm, what string) {
		t.Helper()
		waitUntil(t, what+" on the console of "+vm, func() bool {
			return strings.Contains(readFile(d.path(vm, "console")), what)
		})
	}
	ends := func(vm, how string) {
		t.Helper()
		must(t, write(d.path(vm, "state"), "stop"))
		if events := readFile(d.path(vm, "events")); !strings.Contains(events, " exit "+how+"\n") {
			t.Errorf("%s did not end so: %s\n%s", vm, how, events)
		}
		if !strings.Contains(readFile(d.path(vm, "log")), "its power button was pressed") {
			t.Errorf("the log of %s does not tell of its power button", vm)
		}
	}

	must(t, os.Mkdir(d.path("web"), 0o755))
	must(t, write(d.path("web", "config"), "image small\ndisk 32M\nstop_timeout 60"))
	must(t, write(d.path("web", "state"), "start"))
	says("web", "booted 1 times")
	disks, err := filepath.Glob(filepath.Join(d.state, "vms", "*", "disks", "overlay.img"))
	if err != nil || len(disks) != 1 {
		t.Fatalf("overlays %v, %v", disks, err)
	}
	must(t, os.Mkdir(d.path("web", "snapshots", "first"), 0o755))
	if frozen := d.read(t, "vms/web/snapshots/first/frozen"); frozen != "0" {
		t.Errorf("frozen is %s without an agent", frozen)
	}
	var info struct {
		Format        string `json:"format"`
		Backing       string `json:"full-backing-filename"`
		BackingFormat string `json:"backing-filename-format"`
		Snapshots     []struct{ Name string }
	}
	out, err := exec.Command("qemu-img", "info", "-U", "--output=json", disks[0]).Output()
	must(t, err)
	must(t, json.Unmarshal(out, &info))
	if info.Format != "qcow2" || info.BackingFormat != "raw" ||
		!sameFile(info.Backing, base) || len(info.Snapshots) != 1 {
		t.Errorf("the overlay is %+v", info)
	}
	// The work disk grows, and the guest sees that.
	must(t, write(d.path("web", "disk"), "48M"))
	must(t, write(d.path("web", "console"),
		"until grep 98304 /sys/block/vdb/size; do sleep 0.1; done; "+
			"echo second >>/disk/log; sync; echo writ\\ten"))
	says("web", "written")
	must(t, write(d.path("web", "console"), "reboot -f")) // by the firmware again
	says("web", "booted 2 times")
	ends("web", "exited 0: the guest powered itself off")

	must(t, write(d.path("web", "restore"), "first"))
	file := filepath.Join(t.TempDir(), "web.tar")
	for _, args := range [][]string{{"export", "web", file}, {"import", file, "copy"}} {
		if out, err := d.client(args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	must(t, os.Remove(d.path("web", "snapshots", "first")))
	must(t, os.Remove(d.path("web")))
	must(t, write(d.path("copy", "stop_timeout"), "2"))
	must(t, write(d.path("copy", "state"), "start"))
	says("copy", "booted 2 times")
	must(t, write(d.path("copy", "console"),
		"killall acpid; cat /disk/log /sys/block/vdb/size; echo no on\\e there"))
	says("copy", "no one there")
	console := strings.ReplaceAll(readFile(d.path("copy", "console")), "\r", "")
	if !strings.Contains(console, "\nboot\nboot\n98304\n") {
		t.Errorf("the copy is not what was exported: %s", console)
	}
	ends("copy", "killed KILL: not off after 2s")
	if after, err := host.FileSHA256(base); err != nil || after != before {
		t.Errorf("the image was changed (%v)", err)
	}
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	return err == nil && err2 == nil && os.SameFile(x, y)
}
