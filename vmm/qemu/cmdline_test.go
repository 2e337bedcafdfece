package qemu

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	hostkvm "banger/internal/kvm"
	"banger/vmm"
)

var update = flag.Bool("update", false, "write the golden files")

const exampleID = "6a2f0f6e-9d0c-4c55-8f1b-0d3c5c1f7a11"

func exampleSpec() *vmm.Spec {
	return &vmm.Spec{
		Serial: 7, ID: exampleID, Name: "web",
		StateDir: "/var/lib/banger", Dir: "/var/lib/banger/vms/" + exampleID,
		Config: vmm.Config{CPUs: 2, Memory: 192 << 20, Cmdline: "quiet password=hunter2"},
		Image: vmm.Image{
			Kernel: "/i/vmlinux", Initrd: "/i/initramfs.cpio", Cmdline: "console=ttyS0",
		},
		NIC: vmm.NIC{Mode: vmm.NetBridge, MAC: "02:00:00:00:00:07"},
	}
}

func overlayDisk(dir, base, format string) vmm.Disk {
	path := vmm.DiskPath(dir, vmm.DiskOverlay)
	return vmm.Disk{Path: path, Format: qcow2, Base: base, BaseFormat: format}
}

func TestCommandLine(t *testing.T) {
	const binary = "qemu-system-x86_64"
	micro := platform{binary: binary, accel: tcg, machine: microvm}
	noTSC := micro
	micro.tscKHz, micro.tscInStep = 2596144, true
	for name, c := range map[string]struct {
		change func(*vmm.Spec)
		host   platform
	}{
		"microvm": {func(*vmm.Spec) {}, micro},
		"microvm-no-tsc": {func(s *vmm.Spec) { s.Image.Cmdline, s.Config.Cmdline = "", "" },
			noTSC},
		"user-disks": {func(s *vmm.Spec) {
			s.NIC.Mode = vmm.NetUser
			s.Disks = []vmm.Disk{
				overlayDisk(s.Dir, "/i/root.img", "raw"),
				{Path: vmm.DiskPath(s.Dir, vmm.DiskWork), Format: qcow2},
				{Path: "/odd, path/it's", Format: "raw", ReadOnly: true},
			}
		}, micro},
		"q35-kvm-vsock": {func(s *vmm.Spec) { s.NIC.Mode = vmm.NetNone; s.Image.Initrd = "" },
			platform{binary: binary, accel: kvm, machine: "q35", cid: 65543}},
		"firmware": {func(s *vmm.Spec) {
			s.Image = vmm.Image{
				Firmware: true, Root: "/i/root.qcow2", RootFormat: qcow2, Memory: 512 << 20,
			}
			s.Config.Cmdline = ""
			s.Disks = []vmm.Disk{
				overlayDisk(s.Dir, s.Image.Root, s.Image.RootFormat),
				{Path: s.Dir + "/" + vmm.DiskSeed, Format: "raw", ReadOnly: true},
			}
		}, micro},
	} {
		t.Run(name, func(t *testing.T) {
			spec := exampleSpec()
			c.change(spec)
			v := commandLine(spec, c.host)
			var b strings.Builder
			for i, f := range v.fds {
				fmt.Fprintf(&b, "%d %v\n", firstFD+i, f)
			}
			b.WriteString(v.shown(c.host.binary) + "\n")
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != string(want) {
				t.Errorf("got\n%swant\n%s", b.String(), want)
			}
			for _, a := range v.args {
				if spec.Config.Cmdline != "" && strings.Contains(a, spec.Config.Cmdline) {
					t.Errorf("everybody can read the kernel's command line in %q", a)
				}
			}
			uuid, log := parseArgs(v.args)
			if uuid != spec.ID || log != spec.Dir+"/"+vmm.ConsoleFile {
				t.Errorf("recognised as %q, %q", uuid, log)
			}
		})
	}
}

// A VMM that an earlier banger started is recognised as well.
func TestParseArgsOfAnEarlierBanger(t *testing.T) {
	uuid, log := parseArgs([]string{"qemu-system-x86_64", "-uuid", "6a2f0f6e",
		"-chardev", "socket,id=console,fd=4,server=on,wait=off" +
			",logfile=/odd,,dir/vms/6a2f0f6e/console.log,logappend=on",
		"-serial", "chardev:console"})
	if uuid != "6a2f0f6e" || log != "/odd,dir/vms/6a2f0f6e/console.log" {
		t.Errorf("recognised as %q, %q", uuid, log)
	}
}

func FuzzParseArgs(f *testing.F) {
	const vm = "qemu\x00-uuid\x00" + exampleID
	f.Add([]byte(vm + "\x00-add-fd\x00fd=3,set=1,opaque=/a,,b/console.log"))
	f.Add([]byte(vm + "\x00-chardev\x00socket,id=console,fd=3,logfile=/a,,b,logappend=on"))
	f.Fuzz(func(t *testing.T, b []byte) {
		args := strings.Split(string(b), "\x00")
		uuid, log := parseArgs(args)
		if uuid != "" && !slices.Contains(args, uuid) ||
			strings.Contains(log, "\x00") || len(log) > len(b) {
			t.Fatalf("%q has the UUID %q and the console's file %q", b, uuid, log)
		}
	})
}

func TestLastLine(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const before = "qemu: of an earlier run\n"
	const banger = "2026-11-24T21:20:18.782Z banger: "
	for _, c := range []struct{ log, want string }{
		{"", ""},
		{"qemu: first\nqemu: second\r\n\n", "qemu: second"},
		{"qemu: no room\n" + banger + "no agent\nbanger: a disk is left blank\n", "qemu: no room"},
		{banger + "running\n", ""},
		{"qemu: no room\nqemu: info: QEMU waiting for connection on: x\n", "qemu: no room"},
		{"qemu: no room\nqemu: -chardev socket,id=mon,fd=3: info: QEMU waiting on: x\n",
			"qemu: no room"},
		{strings.Repeat("x", 600), strings.Repeat("x", 512)},
	} {
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(before+c.log), 0); err != nil {
			t.Fatal(err)
		}
		if got := lastLine(f, int64(len(before))); got != c.want {
			t.Errorf("%q: got %q", c.log, got)
		}
	}
}

func TestTSC(t *testing.T) {
	measured := measureTSC()
	if measured == 0 {
		t.Skip("no time stamp counter: run on x86-64")
	}
	known := hostkvm.TSC()
	if known != 0 && (measured < known-known/200 || measured > known+known/200) {
		t.Errorf("measured %d kHz, KVM says %d", measured, known)
	}
}

func TestOwner(t *testing.T) {
	ours := "qemu-system-x86_64 -uuid u1 -chardev socket,id=console,fd=4,server=on,wait=off," +
		"logfile=/var/lib/banger/vms/u1/console.log,logappend=on"
	for _, c := range []struct{ args, dir, uuid string }{
		{"/usr/bin/" + ours, "/var/lib/banger", "u1"},
		{strings.Replace(ours, "/vms/", "/other/", 1), "", ""},
		{strings.Replace(ours, "/var", "var", 1), "", ""},
		{"vim " + ours, "", ""},
		{"/usr/bin/qemu-system-x86_64 -name guest=web -uuid u1", "", ""},
		{"qemu-system-x86_64", "", ""},
	} {
		if dir, uuid := Owner(strings.Split(c.args, " ")); dir != c.dir || uuid != c.uuid {
			t.Errorf("%s: %q, %q", c.args, dir, uuid)
		}
	}
}

// String is a line of a golden file.
func (i inheritance) String() string {
	if i.path == "" {
		return string(i.name)
	}
	return i.redirection() + i.path
}
