// Package qemu runs VMs in QEMU.
//
// [New] gives a vmm.Driver. A machine is one process in a session of its own,
// sandboxed, as the VM's own user where the daemon is root. The daemon makes
// the listening sockets `qmp`, `console` and `agent` in the VM's directory and
// QEMU inherits them, so that a later daemon finds the same QEMU there again
// ([Driver.Adopt]): nothing but the process itself has to survive the daemon.
//
// The microvm machine is used where QEMU has it, q35 otherwise and for what
// firmware boots; KVM where the
// processor shows that it can, TCG otherwise. The exact command line is
// written to the VM's log.
//
// Each [Machine] runs four goroutines: the QMP client's reader, the console's
// drain, one that waits on the pidfd and one that calls notify. Machine.Close
// ends them. No call hangs on a QEMU that does not answer: QMP calls have
// deadlines and Kill needs nothing from QEMU.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/internal/host"
	"banger/vmm"

	"golang.org/x/sys/unix"
)

// startDeadline is how long QEMU may take until its CPUs run.
const startDeadline = 30 * time.Second

// Options are what a Driver is made of.
type Options struct {
	Binary  string       // path of QEMU; qemu-system-x86_64 of PATH if empty
	Accel   string       // auto (or empty), kvm or tcg
	Machine string       // auto (or empty), microvm or q35
	Log     *slog.Logger // slog.Default() if nil

	// UserWorld lets guests with vmm.NetUser reach whatever the host reaches, services on its loopback included; otherwise they reach
	// nothing, and only forwarded ports lead to them.
	UserWorld bool
}

// Driver starts QEMUs. It holds no resources and needs no closing.
type Driver struct {
	log  *slog.Logger
	host platform
}

// New looks at QEMU and the host. It runs QEMU once, to ask for its machines,
// and may measure the TSC for 50 ms. ErrUnsupported where there is no QEMU,
// ErrInvalid for unknown words.
func New(o Options) (*Driver, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Binary == "" {
		o.Binary = "qemu-system-x86_64"
	}
	path, err := exec.LookPath(o.Binary)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return nil, fmt.Errorf("no QEMU (install qemu-system-x86): %w: %v", vmm.ErrUnsupported, err)
	}
	accel, why, err := chooseAccel(o.Accel)
	if err != nil {
		return nil, err
	}
	machine, err := chooseMachine(o.Machine, path)
	if err != nil {
		return nil, err
	}
	d := &Driver{log: o.Log, host: platform{binary: path, accel: accel, machine: machine, userWorld: o.UserWorld}}
	if machine == "microvm" {
		d.host.tscKHz = hostTSC()
	}
	o.Log.Info("qemu", "binary", path, "machine", machine, "accel", accel, "because", why, "tsc_khz", d.host.tscKHz)
	return d, nil
}

// StreamsOnly implements vmm.StreamsOnly: with restrict=on libslirp drops every datagram of a guest, before it looks whether it is an answer (its
// udp_input).
func (d *Driver) StreamsOnly() bool { return !d.host.userWorld }

func chooseMachine(wish, binary string) (string, error) {
	switch wish {
	case "microvm", "q35":
		return wish, nil
	case "", "auto":
	default:
		return "", fmt.Errorf("machine is auto, microvm or q35, not %q: %w", wish, vmm.ErrInvalid)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "-M", "help").Output()
	if err != nil {
		return "", fmt.Errorf("cannot ask QEMU for its machines: %w", err)
	}
	for _, line := range strings.Split(string(out), "\n") {
		if strings.HasPrefix(line, "microvm ") {
			return "microvm", nil
		}
	}
	return "q35", nil
}

// Name implements vmm.Driver.
func (d *Driver) Name() string { return "qemu" }

// Accel is what runs the CPUs of the machines that Start starts: kvm or tcg.
func (d *Driver) Accel() string { return d.host.accel }

// absolute gives a copy of spec whose paths do not depend on the working directory.
func absolute(spec *vmm.Spec) (*vmm.Spec, error) {
	s := *spec
	s.Disks = append([]vmm.Disk(nil), spec.Disks...)
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

// Start implements vmm.Driver. It takes at most 30 s.
func (d *Driver) Start(ctx context.Context, spec *vmm.Spec, notify func(vmm.Notice)) (vmm.Machine, error) {
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

func (d *Driver) start(ctx context.Context, spec *vmm.Spec, notify func(vmm.Notice)) (*Machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h := d.host
	vhost, cid := d.leaseVsock(spec)
	defer vhost.Close()
	h.cid = cid
	v := commandLine(spec, h)
	files, err := inherited(spec, v.fds, vhost)
	letGo := func() {
		for i, f := range files {
			if v.fds[i].name != fdTap { // the caller's
				f.Close()
			}
		}
	}
	defer letGo()
	if err != nil {
		return nil, err
	}
	cred, err := credential(spec, h.accel)
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
	if spec.Log != nil {
		fmt.Fprintf(spec.Log, "%s\n", v.shown(h.binary))
	}
	m, err := newMachine(spec, nil, h.accel, d.toGuest(spec, cid), notify)
	if err != nil {
		return nil, err
	}
	if m.proc, err = spawn(append([]string{h.binary}, v.args...), out, files, cred); err != nil {
		m.disconnect()
		return nil, err
	}
	// From here on only QEMU holds the sockets, so that its end is an end of file here, and the
	// disks with their locks.
	letGo()
	if err := m.boot(ctx, v.append); err != nil {
		err = m.abandon(ctx, err)
		return nil, err
	}
	m.serve()
	return m, nil
}

// boot gives QEMU the kernel's command line, if there is one, and waits until the CPUs run.
func (m *Machine) boot(ctx context.Context, line string) error {
	if err := m.connect(ctx); err != nil {
		return err
	}
	if line != "" {
		err := m.qmp.call(ctx, "qom-set", map[string]string{"path": "/machine", "property": "append", "value": line}, nil)
		if err == nil {
			err = m.qmp.call(ctx, "x-exit-preconfig", nil, nil)
		}
		if err != nil {
			return err
		}
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

// abandon ends a machine that did not come up and says why it did not.
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
	said := ""
	if m.out != nil {
		said = lastLine(m.out, m.outPos)
	}
	m.disconnect()
	switch {
	case ctx.Err() != nil:
		cause = ctx.Err()
	case ended && said != "":
		cause = errors.New(said)
	case ended:
		cause = fmt.Errorf("QEMU ended at once: %w", cause)
	}
	if killErr != nil {
		cause = fmt.Errorf("%w; %v", cause, killErr)
	}
	return cause
}

// inherited opens what QEMU inherits, in the order of fds. All but the tap
// are the caller's to close, also those that come with an error.
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

// credential is who QEMU runs as; nil for the daemon's own user.
func credential(spec *vmm.Spec, accel string) (*syscall.Credential, error) {
	if spec.UID < 0 || spec.GID < 0 {
		return nil, nil
	}
	c := &syscall.Credential{Uid: uint32(spec.UID), Gid: uint32(spec.GID)}
	if accel == "kvm" {
		var st unix.Stat_t
		if err := unix.Stat("/dev/kvm", &st); err != nil {
			return nil, fmt.Errorf("cannot look at /dev/kvm: %w", err)
		}
		c.Groups = []uint32{st.Gid}
	}
	return c, nil
}

var (
	_ vmm.Driver       = (*Driver)(nil)
	_ vmm.Machine      = (*Machine)(nil)
	_ vmm.Pauser       = (*Machine)(nil)
	_ vmm.Guester      = (*Machine)(nil)
	_ vmm.Consoler     = (*Machine)(nil)
	_ vmm.BlockStatser = (*Machine)(nil)
	_ vmm.PowerButton  = (*Machine)(nil)
	_ vmm.Snapshotter  = (*Machine)(nil)
	_ vmm.DiskGrower   = (*Machine)(nil)
	_ vmm.Fuller       = (*Machine)(nil)
	_ vmm.DiskKeeper   = (*Driver)(nil)
	_ vmm.Forwarder    = (*Machine)(nil)
	_ vmm.StreamsOnly  = (*Driver)(nil)
)
