package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"banger/internal/host"
	hostkvm "banger/internal/kvm"
	"banger/vmm"

	"golang.org/x/sys/unix"
)

// startDeadline is how long QEMU may take until its CPUs run.
const startDeadline = 30 * time.Second

// absolute returns a copy of spec whose paths do not depend on the working directory.
func absolute(spec *vmm.Spec) (*vmm.Spec, error) {
	s := *spec
	s.Disks = slices.Clone(spec.Disks)
	paths := []*string{&s.StateDir, &s.Dir, &s.Image.Kernel, &s.Image.Initrd}
	for i := range s.Disks {
		paths = append(paths, &s.Disks[i].Path, &s.Disks[i].Base)
	}
	for _, p := range paths {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, err
		}
		*p = abs
	}
	return &s, nil
}

// Start implements vmm.Driver. It blocks for at most 30 s.
func (d *Driver) Start(
	ctx context.Context, spec *vmm.Spec, notify func(vmm.Notice),
) (vmm.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	spec, err := absolute(spec)
	if err != nil {
		return nil, err
	}
	m, err := d.start(ctx, spec, notify)
	if err != nil {
		removeSockets(spec.Dir)
		return nil, err
	}
	return m, nil
}

func (d *Driver) start(
	ctx context.Context, spec *vmm.Spec, notify func(vmm.Notice),
) (*Machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	vhost, cid := d.leaseVsock(spec)
	defer vhost.Close()
	p := d.platform
	p.cid = cid
	v := commandLine(spec, p)
	if spec.Log != nil { // before newMachine notes where QEMU's own lines begin
		fmt.Fprintf(spec.Log, "%s\n", v.shown(d.binary))
	}
	m, err := newMachine(spec, nil, d.accel, d.toGuest(spec, cid), notify)
	if err != nil {
		return nil, err
	}
	// spawnVM closes its files. From then on only QEMU holds the sockets, so that its end is an
	// end of file here, and the disks with their locks.
	if m.proc, err = d.spawnVM(spec, v, vhost); err != nil {
		m.disconnect()
		return nil, err
	}
	joined, err := d.settle(ctx, spec, m)
	ready := func() error {
		if err := joined(); err != nil {
			return err
		}
		if d.confinement.view != nil {
			if err := d.confinement.view.seal(m.proc); err != nil {
				return err
			}
		}
		return m.limitFirst(ctx, &spec.Config.Limits)
	}
	if err == nil {
		err = m.boot(ctx, v.kernelLine, ready)
	}
	if e := joined(); err == nil {
		err = e
	}
	if err != nil {
		return nil, m.abandon(ctx, err)
	}
	m.serve()
	return m, nil
}

// spawnVM starts a QEMU with the command line v. vhost is the open vsock device.
func (d *Driver) spawnVM(spec *vmm.Spec, v *commands, vhost *os.File) (*process, error) {
	files, err := inherited(spec, v.fds, vhost)
	defer func() {
		for i, f := range files {
			if v.fds[i].name != fdTap { // the caller's
				f.Close()
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	var boot []*os.File
	for i, f := range files {
		if v.fds[i].name == fdBoot {
			boot = append(boot, f)
		}
	}
	c, err := d.cell(spec, boot)
	if err != nil {
		return nil, err
	}
	out := spec.LogFile
	if out == nil {
		if out, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
			return nil, err
		}
		defer out.Close()
	}
	return spawn(append([]string{d.binary}, v.args...), out, files, c)
}

// inherited opens the files that QEMU inherits, in the order of fds. The caller closes all but the
// tap, also after an error.
func inherited(spec *vmm.Spec, fds []inheritance, vhost *os.File) ([]*os.File, error) {
	dir, err := host.OpenDir(spec.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var files []*os.File
	for _, i := range fds {
		var f *os.File
		switch {
		case i.path != "":
			f, err = i.open(spec)
		case i.name == fdTap:
			if f = spec.NIC.Tap; f == nil {
				err = errors.New("it has no tap")
			}
		case i.name == fdVsock:
			f = vhost
		default:
			f, err = bind(dir, string(i.name))
		}
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// credential returns the user that QEMU runs as; nil is the daemon's own.
func credential(spec *vmm.Spec, accel string) (*syscall.Credential, error) {
	if spec.UID < 0 || spec.GID < 0 {
		return nil, nil
	}
	c := &syscall.Credential{Uid: uint32(spec.UID), Gid: uint32(spec.GID)}
	if accel == kvm {
		var st unix.Stat_t
		if err := unix.Stat(hostkvm.Device, &st); err != nil {
			return nil, fmt.Errorf("cannot examine %s: %w", hostkvm.Device, err)
		}
		c.Groups = []uint32{st.Gid}
	}
	return c, nil
}

// boot sends the kernel's command line, if there is one, and waits until the CPUs run. When QEMU
// has opened all that it ever opens, and the guest has not begun, it calls ready.
func (m *Machine) boot(ctx context.Context, kernelLine string, ready func() error) error {
	if err := m.connect(ctx); err != nil {
		return err
	}
	if kernelLine != "" {
		property := map[string]string{
			"path": "/machine", "property": "append", "value": kernelLine,
		}
		if err := m.qmp.call(ctx, "qom-set", property, nil); err != nil {
			return err
		}
		if err := m.qmp.call(ctx, "x-exit-preconfig", nil, nil); err != nil {
			return err
		}
	}
	if err := ready(); err != nil {
		return err
	}
	if err := m.qmp.call(ctx, "cont", nil, nil); err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		status, err := m.status(ctx)
		if err != nil || status == "running" {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// abandon ends a machine whose start failed, and returns the reason.
func (m *Machine) abandon(ctx context.Context, cause error) error {
	ended := m.proc.gone()
	if !ended && ctx.Err() == nil {
		// The connection breaks a moment before the process is gone.
		m.proc.pidfd.SetReadDeadline(time.Now().Add(lastWords))
		ended = m.proc.wait() == nil
		m.proc.pidfd.SetReadDeadline(time.Time{})
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), killDeadline)
	defer cancel()
	killErr := m.proc.end(bounded)
	printed := m.lastLine()
	if m.group != nil {
		m.group.Remove()
	}
	m.disconnect()
	switch {
	case ctx.Err() != nil:
		cause = ctx.Err()
	case ended && printed != "":
		cause = errors.New(printed)
	case ended:
		cause = fmt.Errorf("QEMU ended at once: %w", cause)
	}
	if killErr != nil {
		cause = fmt.Errorf("%w; %v", cause, killErr)
	}
	return cause
}
