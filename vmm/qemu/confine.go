package qemu

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"banger/internal/host"
	hostkvm "banger/internal/kvm"
	"banger/vmm"

	"golang.org/x/sys/unix"
)

// confinement is what keeps QEMUs from the host on this host. Each of its parts may be missing.
type confinement struct {
	view     *view  // nil for an ordinary user's daemon
	missing  string // why there is no view
	landlock int    // version of the kernel's interface, 0 for none
}

// cell is one QEMU's program and what keeps it from the host.
type cell struct {
	program     string              // without symbolic links
	user        *syscall.Credential // nil: the daemon's own
	view        *view
	landlock    *host.Landlock
	hostNetwork bool   // for QEMU's user networking
	resolver    []byte // of resolv.conf, for names in it
}

// confine finds out what this host has, by a QEMU that lists its machines. VMs run with what there
// is, and the log and `vmms` say what that is.
func confine(log *slog.Logger, program, accel string) (c confinement, machines string, err error) {
	if c.landlock, err = host.LandlockABI(); err != nil {
		log.Warn("QEMU is not confined by Landlock", "err", err)
	}
	if os.Getuid() != 0 {
		c.missing = "only root's daemon gives a VMM namespaces of its own; it has " + c.String()
	} else if c.view, err = newView(program); err != nil {
		log.Warn("QEMU sees the host's files and network", "err", err)
		c.missing = err.Error()
	}
	machines, err = listMachines(c.cell(program, accel))
	if err == nil {
		return c, machines, nil
	}
	machines, plainErr := listMachines(cell{program: program})
	if plainErr == nil {
		log.Warn("QEMU does not start confined, so it sees what its user sees", "err", err)
		c = confinement{missing: "QEMU does not start confined: " + err.Error()}
	}
	return c, machines, plainErr
}

// String names the parts in few words.
func (c confinement) String() string {
	all := []string{"seccomp"}
	if c.landlock > 0 {
		all = append(all, "Landlock "+strconv.Itoa(c.landlock))
	}
	if c.view != nil {
		all = append(all, "an empty root", "namespaces of mnt, pid, net, ipc and uts")
	}
	return strings.Join(all, ", ")
}

// cell returns the confinement of a QEMU without user networking.
func (c confinement) cell(program, accel string) cell {
	one := cell{program: program, view: c.view}
	if c.landlock == 0 {
		return one
	}
	one.landlock = new(host.Landlock)
	permit := func(rights uint64, paths ...string) {
		for _, path := range paths {
			one.permit(host.LandlockRule{Path: path, Rights: rights})
		}
	}
	permit(host.LandlockLoad, loadDirs...)
	permit(host.LandlockLoad, programDir(program))
	permit(host.LandlockRead, loadFiles...)
	permit(host.LandlockDevice, "/dev/null", "/dev/urandom")
	if accel == kvm {
		permit(host.LandlockDevice, hostkvm.Device)
	}
	if c.view != nil {
		permit(host.LandlockRead, "/proc") // its own only
	}
	return one
}

// cell returns the confinement of a VM's QEMU, which opens boot by their names.
func (d *Driver) cell(spec *vmm.Spec, boot []*os.File) (cell, error) {
	c := d.confinement.cell(d.program, d.accel)
	c.hostNetwork = spec.NIC.Mode == vmm.NetUser
	names := c.hostNetwork && d.userWorld
	var err error
	if names && c.view != nil {
		c.resolver, err = os.ReadFile(resolvConf)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return c, err
		}
	}
	if c.landlock != nil {
		c.landlock.BindTCP, c.landlock.ConnectTCP = c.hostNetwork, names
		for _, f := range boot {
			c.permit(host.LandlockRule{File: f, Rights: host.LandlockRead})
		}
		if names {
			c.permit(host.LandlockRule{Path: c.resolverDir(), Rights: host.LandlockRead})
		}
	}
	c.user, err = credential(spec, d.accel)
	return c, err
}

func (c cell) permit(rule host.LandlockRule) {
	c.landlock.Open = append(c.landlock.Open, rule)
}

// resolverDir returns the directory of QEMU's resolv.conf(5). Programs replace the host's file.
func (c cell) resolverDir() string {
	if c.view != nil {
		return emptyDir + filepath.Dir(resolvConf)
	}
	if path, err := filepath.EvalSymlinks(resolvConf); err == nil {
		return filepath.Dir(path)
	}
	return filepath.Dir(resolvConf)
}

// enter confines the calling thread, which OnOwnThread made, and with it the process that it starts
// with attr. That has no capabilities: as root it would have those of the bounding set.
func (c cell) enter(attr *syscall.SysProcAttr) error {
	if c.view != nil {
		// By the thread's own unshare(2), any first child would be the namespace's process 1. Package
		// os starts one to see how processes are started.
		attr.Cloneflags |= unix.CLONE_NEWPID
		if err := c.view.enter(c.hostNetwork, c.resolver); err != nil {
			return err
		}
	}
	host.DropBounds()
	if c.landlock != nil {
		return c.landlock.Restrict()
	}
	return nil
}
