package qemu

import (
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"banger/internal/host"
	"banger/vmm"

	"golang.org/x/sys/unix"
)

// confinement is what keeps QEMUs from the host on this host. Each of its parts may be missing.
type confinement struct {
	view     *view // nil for an ordinary user's daemon
	landlock int   // version of the kernel's interface, 0 for none
}

// cell is one QEMU's program and what keeps it from the host.
type cell struct {
	program     string              // without symbolic links
	user        *syscall.Credential // nil: the daemon's own
	view        *view
	landlock    *host.Landlock
	hostNetwork bool // for QEMU's user networking
}

// confine finds out what this host has. It never fails: VMs run with what there is, and the log and
// `vmms` say what that is.
func confine(log *slog.Logger, program string) (c confinement) {
	var err error
	if c.landlock, err = host.LandlockABI(); err != nil {
		log.Warn("QEMU is not confined by Landlock", "err", err)
	}
	if os.Getuid() != 0 {
		return c
	}
	if c.view, err = newView(program); err != nil {
		log.Warn("QEMU sees the host's files and network", "err", err)
	}
	return c
}

// String names the parts in few words.
func (c confinement) String() string {
	all := []string{"seccomp"}
	if c.landlock > 0 {
		all = append(all, "landlock "+strconv.Itoa(c.landlock))
	}
	if c.view != nil {
		all = append(all, "empty root", "namespaces mnt,pid,net,ipc,uts")
	}
	return strings.Join(all, "; ")
}

// cell returns the confinement of a VM's QEMU, which opens boot by their names.
func (d *Driver) cell(spec *vmm.Spec, boot []*os.File) (cell, error) {
	c := cell{program: d.program, view: d.confinement.view,
		hostNetwork: spec.NIC.Mode == vmm.NetUser}
	var err error
	if c.user, err = credential(spec, d.accel); err != nil || d.confinement.landlock == 0 {
		return c, err
	}
	c.landlock = &host.Landlock{
		BindTCP: c.hostNetwork, ConnectTCP: c.hostNetwork && d.userWorld,
	}
	permit := func(path string, rights uint64) {
		c.landlock.Open = append(c.landlock.Open, host.LandlockRule{Path: path, Rights: rights})
	}
	for _, dir := range append(slices.Clone(loadDirs), programDir(d.program)) {
		permit(dir, host.LandlockLoad)
	}
	for _, path := range loadFiles {
		permit(path, host.LandlockRead)
	}
	for _, path := range viewDevices {
		if path != kvmDevice || d.accel == kvm {
			permit(path, host.LandlockDevice)
		}
	}
	if c.view != nil {
		permit("/proc", host.LandlockRead) // its own only
	}
	for _, f := range boot {
		c.landlock.Open = append(c.landlock.Open,
			host.LandlockRule{File: f, Rights: host.LandlockRead})
	}
	return c, nil
}

// enter confines the calling thread, which OnOwnThread made, and with it the process that it starts
// with attr.
func (c cell) enter(attr *syscall.SysProcAttr) error {
	if c.view != nil {
		// A thread cannot enter a pid namespace itself.
		attr.Cloneflags |= unix.CLONE_NEWPID
		if err := c.view.enter(c.hostNetwork); err != nil {
			return err
		}
	}
	if c.user != nil {
		host.DropBounds()
	}
	if c.landlock != nil {
		return c.landlock.Restrict()
	}
	return nil
}
