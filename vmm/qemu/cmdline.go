package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/vmm"
	"banger/vmm/guest"
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

// fdName says what an inherited descriptor is.
type fdName string

const (
	fdQMP     fdName = qmpSocket
	fdAgent   fdName = agentSocket
	fdConsole fdName = consoleSocket
	fdTap     fdName = "tap"
	fdVsock   fdName = "vsock"
	fdBoot    fdName = "boot" // a kernel or an initramfs
	fdFile    fdName = "file" // of a set of descriptors
)

// platform is what a command line depends on beside the VM.
type platform struct {
	binary  string
	accel   string // kvm or tcg
	machine string // microvm or q35
	tscKHz  uint64 // 0 if it could not be measured
	cid     uint32 // the guest's vsock address, 0 for none

	userWorld bool // guests with user networking reach what the host reaches, its loopback too
}

// invocation is how one QEMU is started.
type invocation struct {
	args   []string      // without the program's name
	fds    []inheritance // from number firstFD on
	append string        // the kernel's command line
	sets   int
}

func (v *invocation) add(a ...string) { v.args = append(v.args, a...) }

func (v *invocation) inherit(i inheritance) int {
	v.fds = append(v.fds, i)
	return firstFD + len(v.fds) - 1
}

func (v *invocation) fd(n fdName) string { return strconv.Itoa(v.inherit(inheritance{name: n})) }

// boot gives the name by which QEMU opens a kernel or an initramfs.
func (v *invocation) boot(path string) string {
	return selfFD(v.inherit(inheritance{fdBoot, path, os.O_RDONLY}))
}

// set gives the name by which QEMU opens a file, in each of these ways. The path is for people,
// and for the driver to recognise the process by.
func (v *invocation) set(path string, flags ...int) string {
	v.sets++
	for _, f := range flags {
		v.add("-add-fd", fmt.Sprintf("fd=%d,set=%d,opaque=%s", v.inherit(inheritance{fdFile, path, f}), v.sets, escape(path)))
	}
	return "/dev/fdset/" + strconv.Itoa(v.sets)
}

// disk adds a disk, and what it is an overlay of.
func (v *invocation) disk(d vmm.Disk, node string) {
	var base any
	if d.Base != "" {
		name := node + "-base"
		n := baseNode(d, name, v.set(d.Base, os.O_RDONLY))
		v.add("-blockdev", string(mustJSON(n)))
		base = name
	}
	flags := []int{os.O_RDONLY}
	if !d.ReadOnly { // QEMU opens it in both ways
		flags = []int{os.O_RDWR, os.O_RDONLY}
	}
	v.add("-blockdev", string(mustJSON(diskNode(d, node, v.set(d.Path, flags...), base))))
}

// shown is the command line for people, who can paste it into a shell once they have made the
// sockets: with the kernel's command line, which QEMU is given over QMP because everybody reads
// arguments, and with what it inherits.
func (v *invocation) shown(binary string) string {
	argv := []string{binary}
	for _, a := range v.args {
		if a == preconfig {
			argv = append(argv, "-append", v.append)
			continue
		}
		argv = append(argv, a)
	}
	text := shellQuote(argv)
	for i, f := range v.fds {
		if f.path != "" {
			text += " " + strconv.Itoa(firstFD+i) + f.redirection() + shellQuote([]string{f.path})
		}
	}
	return text
}

// preconfig makes QEMU wait for the kernel's command line before it makes the machine.
const preconfig = "-preconfig"

// commandLine gives how the VM's QEMU is started.
func commandLine(spec *vmm.Spec, h platform) *invocation {
	h = h.of(spec)
	v := &invocation{append: kernelCommandLine(spec, h)}
	add := v.add
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
		add("-kernel", v.boot(spec.Image.Kernel))
	}
	if spec.Image.Initrd != "" {
		add("-initrd", v.boot(spec.Image.Initrd))
	}
	if v.append != "" {
		add(preconfig)
	}
	console := v.set(filepath.Join(spec.Dir, vmm.ConsoleFile), os.O_WRONLY|os.O_APPEND)
	add("-chardev", "socket,id=mon,fd="+v.fd(fdQMP)+",server=on,wait=on",
		"-mon", "chardev=mon,mode=control",
		"-chardev", "socket,id=console,fd="+v.fd(fdConsole)+",server=on,wait=off,logfile="+console+",logappend=on",
		"-serial", "chardev:console",
		"-chardev", "socket,id=agent,fd="+v.fd(fdAgent)+",server=on,wait=off",
		"-device", "virtio-serial"+bus,
		"-device", "virtserialport,chardev=agent,name="+guest.PortName,
		"-device", "virtio-rng"+bus,
		"-device", "virtio-balloon"+bus)
	for i, d := range spec.Disks {
		node := nodeName(d, i)
		d = actual(d)
		v.disk(d, node)
		add("-device", fmt.Sprintf("virtio-blk%s,drive=%s,serial=%s,werror=stop,rerror=report%s", bus, node, node, bootIndex(spec, d)))
	}
	switch spec.NIC.Mode {
	case vmm.NetBridge:
		add("-netdev", "tap,id=net0,fd="+v.fd(fdTap))
	case vmm.NetUser:
		// Without restrict QEMU leads what the guest sends to its gateway to the host's own loopback. ipv6 has no use of its own there.
		add("-netdev", "user,id=net0,ipv6=off,restrict="+onOff(!h.userWorld))
	}
	if spec.NIC.Mode == vmm.NetBridge || spec.NIC.Mode == vmm.NetUser {
		add("-device", "virtio-net"+bus+",netdev=net0,mac="+escape(spec.NIC.MAC)+noBoot(spec))
	}
	if h.cid != 0 {
		add("-device", fmt.Sprintf("vhost-vsock%s,guest-cid=%d,vhostfd=%s", bus, h.cid, v.fd(fdVsock)))
	}
	if h.machine != "microvm" {
		add("-device", "pvpanic")
	}
	return v
}

// of is the platform as the VM sees it: firmware boots on q35 only, whatever the other VMs run on.
func (h platform) of(spec *vmm.Spec) platform {
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
func kernelCommandLine(spec *vmm.Spec, h platform) string {
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
