package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/vmm"
)

// Words of QEMU and of the configuration.
const (
	microvm = "microvm"
	kvm     = "kvm"
	tcg     = "tcg"
)

// preconfig makes QEMU wait for the kernel's command line before it makes the machine.
const preconfig = "-preconfig"

// stopped makes QEMU wait before the CPUs run, until its view of the host has been taken away.
const stopped = "-S"

// platform holds what a command line depends on beside the VM.
type platform struct {
	binary  string
	accel   string // kvm or tcg
	machine string // microvm or q35
	tscKHz  uint64 // 0 if it could not be measured
	cid     uint32 // the guest's vsock address, 0 for none

	tscInStep bool // the TSCs of the host's CPUs agree
	userWorld bool // guests with user networking reach what the host reaches, its loopback too
}

// commands are the arguments of one QEMU and the descriptors that it inherits.
type commands struct {
	args       []string      // without the program's name
	fds        []inheritance // from number firstFD on
	kernelLine string        // the kernel's command line, which is sent over QMP
	sets       int
}

// commandLine returns the command line of a VM's QEMU.
func commandLine(spec *vmm.Spec, p platform) *commands {
	if spec.Image.Firmware {
		p.machine = "q35" // firmware boots nowhere else
	}
	var c commands
	for _, d := range devices(spec, p) {
		d.addTo(&c)
	}
	return &c
}

func (c *commands) add(args ...string) { c.args = append(c.args, args...) }

// inherit returns the number of one more descriptor.
func (c *commands) inherit(i inheritance) int {
	c.fds = append(c.fds, i)
	return firstFD + len(c.fds) - 1
}

func (c *commands) fd(n fdName) string { return strconv.Itoa(c.inherit(inheritance{name: n})) }

// boot returns the name by which QEMU opens a kernel or an initramfs.
func (c *commands) boot(path string) string {
	return selfFD(c.inherit(inheritance{fdBoot, path, os.O_RDONLY}))
}

// set adds a set of descriptors of one file, one for each of these ways of opening it. It returns
// the name by which QEMU opens the file. The path is for people, and [Driver.Adopt] recognises the
// process by it.
func (c *commands) set(path string, flags ...int) string {
	c.sets++
	for _, f := range flags {
		fd := c.inherit(inheritance{fdFile, path, f})
		c.add("-add-fd", fmt.Sprintf("fd=%d,set=%d,opaque=%s", fd, c.sets, escape(path)))
	}
	return "/dev/fdset/" + strconv.Itoa(c.sets)
}

// shown returns the command line for people. Once they have made the sockets, they can paste it
// into a shell. It includes the inherited files, and the kernel's command line: QEMU receives that
// over QMP, because everybody can read arguments.
func (c *commands) shown(binary string) string {
	argv := []string{binary}
	for _, a := range c.args {
		switch a {
		case preconfig:
			argv = append(argv, "-append", c.kernelLine)
		case stopped:
		default:
			argv = append(argv, a)
		}
	}
	text := shellQuote(argv)
	for i, f := range c.fds {
		if f.path != "" {
			text += " " + strconv.Itoa(firstFD+i) + f.redirection() + shellQuote([]string{f.path})
		}
	}
	return text
}

const (
	// maxCPUs is how many CPUs QEMU's machines have without an interrupt controller of KVM's: more
	// need 32-bit APIC ids.
	maxCPUs = 255
	// manyPrograms is the least memory, in bytes, of an image with an init that starts many
	// programs.
	manyPrograms    = 256 << 20
	minTranslations = 32  // MiB
	maxTranslations = 128 // MiB
)

// translationBuffer returns the size of TCG's buffer in MiB; QEMU's default is a gigabyte. When it
// is full, QEMU drops all of its translated code. With 16 MiB each login or command in the built-in
// image's guest took ten times as long. A whole distribution needs the most.
func translationBuffer(spec *vmm.Spec) int64 {
	if spec.Image.Memory >= manyPrograms {
		return maxTranslations
	}
	return min(max(minTranslations, memory(spec)>>20/4), maxTranslations)
}

// kernelCommandLine returns the image's words, those that the machine needs, and the user's. The
// user's are last, so that they prevail.
func kernelCommandLine(spec *vmm.Spec, p platform) string {
	var words []string
	if spec.Image.Cmdline != "" {
		words = append(words, spec.Image.Cmdline)
	}
	if p.machine == microvm && p.tscKHz != 0 {
		// microvm has no HPET: on a busy host the guest cannot measure its TSC and hangs.
		words = append(words, "tsc_early_khz="+strconv.FormatUint(p.tscKHz, 10))
	}
	if p.machine == microvm {
		// microvm has no i8042, by which a kernel resets: under KVM it polls that for minutes. A
		// triple fault ends the machine at once.
		words = append(words, "reboot=t")
	}
	if p.machine == microvm && p.accel == tcg && p.tscInStep && spec.Config.CPUs > 1 {
		// TCG's CPU lacks the flag by which a kernel trusts the TSCs of several CPUs. Without a
		// TSC its clock is wrong and ticks all the time.
		words = append(words, "tsc=reliable")
	}
	if spec.Config.Cmdline != "" {
		words = append(words, spec.Config.Cmdline)
	}
	return strings.Join(words, " ")
}

// memory returns the size of the guest's memory in bytes.
func memory(spec *vmm.Spec) int64 {
	return spec.Config.GuestMemory(spec.Image.Memory)
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

// escape returns a value in QEMU's option syntax, in which a comma is doubled.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// shellQuote returns argv in a form that a person can paste into a shell.
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
