package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"banger/internal/qemus"
	"banger/vmm"
	"banger/vmm/guest"
)

// device is a part of a machine. It adds its arguments to a command line, with the descriptors that
// these arguments name.
type device interface{ addTo(c *commands) }

// bus is the suffix of virtio devices: of virtio-mmio, which ACPI describes to the guest, or PCI.
type bus string

// devices returns the parts of a VM's machine, in the order of their arguments.
func devices(spec *vmm.Spec, p platform) []device {
	firmware := spec.Image.Firmware
	on := bus("-pci")
	if p.machine == microvm {
		on = "-device"
	}
	all := []device{
		board{p.machine, firmware, p.accel == tcg && p.tscKHz == 0},
		processor{p.accel, translationBuffer(spec)},
		sandbox,
		identity(spec),
		loader{spec.Image.Kernel, spec.Image.Initrd, kernelCommandLine(spec, p)},
		control{filepath.Join(spec.Dir, vmm.ConsoleFile)},
		agentPort{on},
		// Without deflate-on-oom a guest whose target is too small panics.
		options{"-device", "virtio-rng" + string(on), "-device", "virtio-balloon" + string(on) + ",deflate-on-oom=on"},
	}
	for i, d := range spec.Disks {
		boots := firmware && d.Base != "" // this disk and no other
		all = append(all, diskDevice{actual(d), on, nodeName(d, i), boots})
	}
	switch spec.NIC.Mode {
	case vmm.NetBridge, vmm.NetUser:
		all = append(all, nicDevice{spec.NIC, on, p.userWorld, firmware})
	}
	if p.cid != 0 {
		all = append(all, vsockDevice{p.cid, on})
	}
	if p.machine != microvm {
		all = append(all, options{"-device", "pvpanic"})
	}
	return all
}

// options are arguments without descriptors.
type options []string

func (o options) addTo(c *commands) { c.add(o...) }

var sandbox = options(qemus.Sandbox)

// identity returns the VM's name and size. [Driver.Adopt] recognises the process by its UUID.
func identity(spec *vmm.Spec) options {
	return options{"-name", "guest=" + escape(spec.Name) + ",debug-threads=off",
		"-uuid", spec.ID,
		"-smp", strconv.Itoa(max(spec.Config.CPUs, 1)),
		"-m", strconv.FormatInt(memory(spec)>>10, 10) + "k"}
}

// board is the machine type.
type board struct {
	machine  string
	firmware bool
	timer    bool // microvm has an i8254, which only a guest that has to measure its TSC needs
}

func (b board) addTo(c *commands) {
	switch {
	// Under KVM a microvm has no clock of its own unless rtc is on: a kernel looks for one for more
	// than a second.
	case b.machine == microvm && b.timer:
		c.add("-M", "microvm,acpi=on,rtc=on")
	case b.machine == microvm:
		// The kernel leaves an unused i8254 ticking, which wakes an idle QEMU 70 times a second.
		c.add("-M", "microvm,acpi=on,rtc=on,pit=off")
	case b.firmware:
		// Without a display, firmware and boot loader print to the serial line.
		c.add("-M", b.machine+",graphics=off")
	default:
		c.add("-M", b.machine)
	}
}

// processor is the CPUs' kind, and what runs them.
type processor struct {
	accel  string
	buffer int64 // TCG's for translated code, MiB
}

func (p processor) addTo(c *commands) {
	if p.accel == kvm {
		c.add("-accel", kvm, "-cpu", "host")
		return
	}
	c.add("-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", p.buffer), "-cpu", "max")
}

// loader is a kernel that QEMU itself loads. All fields are empty where firmware boots a disk.
type loader struct{ kernel, initrd, line string }

func (l loader) addTo(c *commands) {
	if l.kernel != "" {
		c.add("-kernel", c.boot(l.kernel))
	}
	if l.initrd != "" {
		c.add("-initrd", c.boot(l.initrd))
	}
	if c.kernelLine = l.line; l.line != "" {
		c.add(preconfig)
	}
	c.add(stopped)
}

// control is the daemon's lines to the machine: the monitor, and the console with its file.
type control struct{ consoleFile string }

func (l control) addTo(c *commands) {
	file := c.set(l.consoleFile, os.O_WRONLY|os.O_APPEND)
	// With wait=off the monitor may report its first client twice and forget the negotiation.
	c.add("-chardev", "socket,id=mon,fd="+c.fd(fdQMP)+",server=on,wait=on",
		"-mon", "chardev=mon,mode=control",
		"-chardev", "socket,id=console,fd="+c.fd(fdConsole)+",server=on,wait=off"+
			",logfile="+file+",logappend=on",
		"-serial", "chardev:console")
}

// agentPort is the virtio-serial port to the agent.
type agentPort struct{ bus }

func (p agentPort) addTo(c *commands) {
	c.add("-chardev", "socket,id=agent,fd="+c.fd(fdAgent)+",server=on,wait=off",
		"-device", "virtio-serial"+string(p.bus),
		"-device", "virtserialport,chardev=agent,name="+guest.PortName)
}

// diskDevice is a virtio disk. Its node's name is its serial number to the guest.
type diskDevice struct {
	vmm.Disk
	bus
	node  string
	boots bool
}

func (d diskDevice) addTo(c *commands) {
	var base any
	if d.Base != "" {
		name := d.node + "-base"
		c.add("-blockdev", string(mustJSON(baseNode(d.Disk, name, c.set(d.Base, os.O_RDONLY)))))
		base = name
	}
	flags := []int{os.O_RDONLY}
	if !d.ReadOnly { // QEMU opens it in both ways
		flags = []int{os.O_RDWR, os.O_RDONLY}
	}
	c.add("-blockdev", string(mustJSON(diskNode(d.Disk, d.node, c.set(d.Path, flags...), base))))
	index := ""
	if d.boots {
		index = ",bootindex=0"
	}
	c.add("-device", fmt.Sprintf("virtio-blk%s,drive=%s,serial=%[2]s,werror=stop,rerror=report%s",
		d.bus, d.node, index))
}

// nicDevice is a network card of a bridge or of QEMU's user networking.
type nicDevice struct {
	vmm.NIC
	bus
	userWorld bool
	firmware  bool
}

func (n nicDevice) addTo(c *commands) {
	if n.Mode == vmm.NetBridge {
		c.add("-netdev", "tap,id=net0,fd="+c.fd(fdTap))
	} else {
		// Without restrict, a guest's packets to its gateway reach the host's own loopback. IPv6
		// has no use of its own there.
		c.add("-netdev", "user,id=net0,ipv6=off,restrict="+onOff(!n.userWorld))
	}
	rom := ""
	if n.firmware { // the card's own boot loader would take time
		rom = ",romfile="
	}
	c.add("-device", "virtio-net"+string(n.bus)+",netdev=net0,mac="+escape(n.MAC)+rom)
}

// vsockDevice is a vsock with a leased address.
type vsockDevice struct {
	cid uint32
	bus
}

func (s vsockDevice) addTo(c *commands) {
	c.add("-device",
		fmt.Sprintf("vhost-vsock%s,guest-cid=%d,vhostfd=%s", s.bus, s.cid, c.fd(fdVsock)))
}
