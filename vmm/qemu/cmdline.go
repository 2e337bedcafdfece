package qemu

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"banger/vmm"
	"banger/vmm/agent"
)

// Names of the sockets in a VM's directory.
const (
	qmpSocket     = "qmp"
	agentSocket   = "agent"
	consoleSocket = "console"
)

var socketNames = []string{qmpSocket, agentSocket, consoleSocket}

// firstFD is the number of the first inherited descriptor; 0 to 2 are the standard ones.
const firstFD = 3

// fdName says what an inherited descriptor is, in the order of their numbers.
type fdName string

const (
	fdQMP     fdName = qmpSocket
	fdAgent   fdName = agentSocket
	fdConsole fdName = consoleSocket
	fdTap     fdName = "tap"
	fdVsock   fdName = "vsock"
)

// host is what a command line depends on beside the VM.
type host struct {
	binary  string
	accel   string // kvm or tcg
	machine string // microvm or q35
	tscKHz  uint64 // 0 if it could not be measured
	vsock   bool   // /dev/vhost-vsock opens

	userWorld bool // guests with user networking reach what the host reaches, its loopback too
}

// commandLine gives the arguments, without the program's name, and the
// descriptors that the process inherits from number firstFD on.
func commandLine(spec *vmm.Spec, h host) (args []string, fds []fdName) {
	h = h.of(spec)
	add := func(a ...string) { args = append(args, a...) }
	inherit := func(n fdName) string {
		fds = append(fds, n)
		return strconv.Itoa(firstFD + len(fds) - 1)
	}
	bus := "-device" // virtio-mmio, described to the guest by ACPI
	switch h.machine {
	case "microvm":
		add("-M", "microvm,acpi=on")
	default:
		machine := h.machine
		if spec.Image.Firmware {
			// Without a display the firmware and the boot loader show themselves on the serial line.
			machine += ",graphics=off"
		}
		add("-M", machine)
		bus = "-pci"
	}
	if h.accel == "kvm" {
		add("-accel", "kvm", "-cpu", "host")
	} else {
		add("-accel", "tcg,thread=multi,tb-size="+strconv.FormatInt(translationBuffer(spec), 10), "-cpu", "max")
	}
	add("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-name", "guest="+escape(spec.Name)+",debug-threads=off",
		"-uuid", spec.ID,
		"-smp", strconv.Itoa(max(spec.Config.CPUs, 1)),
		"-m", strconv.FormatInt(memory(spec)>>10, 10)+"k")
	if !spec.Image.Firmware {
		add("-kernel", spec.Image.Kernel)
	}
	if spec.Image.Initrd != "" {
		add("-initrd", spec.Image.Initrd)
	}
	if line := kernelCommandLine(spec, h); line != "" {
		add("-append", line)
	}
	add("-chardev", "socket,id=mon,fd="+inherit(fdQMP)+",server=on,wait=off",
		"-mon", "chardev=mon,mode=control",
		"-chardev", "socket,id=console,fd="+inherit(fdConsole)+",server=on,wait=off"+logOption(spec.Dir)+",logappend=on",
		"-serial", "chardev:console",
		"-chardev", "socket,id=agent,fd="+inherit(fdAgent)+",server=on,wait=off",
		"-device", "virtio-serial"+bus,
		"-device", "virtserialport,chardev=agent,name="+agent.PortName,
		"-device", "virtio-rng"+bus,
		"-device", "virtio-balloon"+bus)
	for i, d := range spec.Disks {
		node := nodeName(d, i)
		d = actual(d)
		add("-blockdev", fmt.Sprintf("driver=%s,node-name=%s,read-only=%s,discard=unmap,file.driver=file,file.filename=%s",
			escape(d.Format), node, onOff(d.ReadOnly), escape(d.Path)),
			"-device", fmt.Sprintf("virtio-blk%s,drive=%s,serial=%s,werror=stop,rerror=report%s", bus, node, node, bootIndex(spec, d)))
	}
	switch spec.NIC.Mode {
	case vmm.NetBridge:
		add("-netdev", "tap,id=net0,fd="+inherit(fdTap))
	case vmm.NetUser:
		// Without restrict QEMU leads what the guest sends to its gateway to the host's own loopback. ipv6 has no use of its own there.
		add("-netdev", "user,id=net0,ipv6=off,restrict="+onOff(!h.userWorld))
	}
	if spec.NIC.Mode == vmm.NetBridge || spec.NIC.Mode == vmm.NetUser {
		add("-device", "virtio-net"+bus+",netdev=net0,mac="+escape(spec.NIC.MAC)+noBoot(spec))
	}
	if h.vsock {
		add("-device", fmt.Sprintf("vhost-vsock%s,guest-cid=%d,vhostfd=%s", bus, contextID(spec.Serial), inherit(fdVsock)))
	}
	if h.machine != "microvm" {
		add("-device", "pvpanic")
	}
	return args, fds
}

// of is the host as the VM sees it: firmware boots on q35 only, whatever the other VMs run on.
func (h host) of(spec *vmm.Spec) host {
	if spec.Image.Firmware {
		h.machine = "q35"
	}
	return h
}

// bootIndex makes the firmware boot the disk over the image's and no other.
func bootIndex(spec *vmm.Spec, d vmm.Disk) string {
	if spec.Image.Firmware && d.Base != "" {
		return ",bootindex=0"
	}
	return ""
}

// noBoot keeps the firmware from a network card's own boot loader, which takes time.
func noBoot(spec *vmm.Spec) string {
	if spec.Image.Firmware {
		return ",romfile="
	}
	return ""
}

// manyPrograms is the least memory, in bytes, of an image with an init that starts many programs.
const manyPrograms = 256 << 20

// translationBuffer is TCG's, in MiB: QEMU's default is a gigabyte. Whatever does not fit makes QEMU forget all, and translate anew what it needs of it: with
// 16 MiB each login or command in the built-in image's guest took ten times as long. A whole distribution, which boots with systemd or even Python, needs the most.
func translationBuffer(spec *vmm.Spec) int64 {
	if spec.Image.Memory >= manyPrograms {
		return maxTranslations
	}
	return min(max(32, memory(spec)>>20/4), maxTranslations)
}

const maxTranslations = 128 // MiB

// kernelCommandLine is the image's, what the machine needs, and the user's last so that it prevails.
func kernelCommandLine(spec *vmm.Spec, h host) string {
	words := make([]string, 0, 3)
	if spec.Image.Cmdline != "" {
		words = append(words, spec.Image.Cmdline)
	}
	if h.machine == "microvm" && h.tscKHz != 0 {
		// microvm has no HPET: on a busy host the guest cannot measure its TSC and hangs.
		words = append(words, "tsc_early_khz="+strconv.FormatUint(h.tscKHz, 10))
	}
	if spec.Config.Cmdline != "" {
		words = append(words, spec.Config.Cmdline)
	}
	return strings.Join(words, " ")
}

func memory(spec *vmm.Spec) int64 {
	for _, n := range []int64{spec.Config.Memory, spec.Image.Memory} {
		if n > 0 {
			return n
		}
	}
	return 128 << 20
}

// contextID is the guest's vsock address; 0 to 2 are reserved (vsock(7)).
func contextID(serial uint64) uint32 { return uint32(1<<16 + serial%(1<<30)) }

// Names of the disks to QEMU, and their serial numbers to the guest.
const (
	overlayNode = "overlay"
	workNode    = "work"
)

func nodeName(d vmm.Disk, i int) string {
	switch filepath.Base(d.Path) {
	case vmm.DiskOverlay:
		return overlayNode
	case vmm.DiskWork:
		return workNode
	case vmm.DiskSeed:
		return "seed"
	}
	return "disk" + strconv.Itoa(i)
}

// logOption is the part of a command line by which a VM's process is
// recognised as one of a state directory.
func logOption(dir string) string {
	return ",logfile=" + escape(filepath.Join(dir, vmm.ConsoleFile))
}

// escape writes a value of QEMU's option syntax, in which a comma is doubled.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// shellQuote writes argv so that a person can paste it into a shell.
func shellQuote(argv []string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=.,:/@%"
	quoted := make([]string, len(argv))
	for i, a := range argv {
		if a == "" || strings.Trim(a, plain) != "" {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		quoted[i] = a
	}
	return strings.Join(quoted, " ")
}
