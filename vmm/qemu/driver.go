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
	host host
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
	d := &Driver{log: o.Log, host: host{binary: path, accel: accel, machine: machine, userWorld: o.UserWorld}}
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

// vsock reports whether /dev/vhost-vsock can be had now; the module may be loaded at any time.
func (d *Driver) vsock() bool {
	f, err := os.OpenFile("/dev/vhost-vsock", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

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
	h.vsock = d.vsock()
	args, names := commandLine(spec, h)
	argv := append([]string{h.binary}, args...)
	files, err := inherited(spec, names)
	defer func() {
		for i, f := range files {
			if names[i] != fdTap { // the caller's
				f.Close()
			}
		}
	}()
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
		fmt.Fprintf(spec.Log, "%s\n", shellQuote(argv))
	}
	m, err := newMachine(spec, nil, h.accel, h.vsock, notify)
	if err != nil {
		return nil, err
	}
	if m.proc, err = spawn(argv, out, files, cred); err != nil {
		m.disconnect()
		return nil, err
	}
	// From here on only QEMU holds the listening sockets: its end is an end of file here.
	for i, f := range files {
		if names[i] != fdTap {
			f.Close()
		}
	}
	if err := m.boot(ctx); err != nil {
		err = m.abandon(ctx, err)
		return nil, err
	}
	m.serve()
	return m, nil
}

// boot waits until the CPUs run.
func (m *Machine) boot(ctx context.Context) error {
	if err := m.connect(ctx, false); err != nil {
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

// inherited opens what QEMU inherits, in the order of names. All but the tap
// are the caller's to close, also those that come with an error.
func inherited(spec *vmm.Spec, names []fdName) ([]*os.File, error) {
	dir, err := openDir(spec.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var files []*os.File
	for _, n := range names {
		var f *os.File
		switch n {
		case fdTap:
			if f = spec.NIC.Tap; f == nil {
				err = errors.New("it has no tap")
			}
		case fdVsock:
			f, err = os.OpenFile("/dev/vhost-vsock", os.O_RDWR, 0)
		default:
			f, err = listen(dir, string(n))
		}
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, createConsoleFile(dir, spec)
}

// listen makes a listening socket in dir in place of what an earlier run left there.
func listen(dir *os.File, name string) (*os.File, error) {
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && err != unix.ENOENT {
		return nil, fmt.Errorf("cannot remove %s: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: through(dir, name)})
	if err == nil {
		err = unix.Listen(fd, 4)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot listen on %s: %w", name, err)
	}
	return f, nil
}

// createConsoleFile makes console.log.
func createConsoleFile(dir *os.File, spec *vmm.Spec) error {
	fd, err := unix.Openat(int(dir.Fd()), vmm.ConsoleFile,
		unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err == unix.EEXIST {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot create %s: %w", vmm.ConsoleFile, err)
	}
	defer unix.Close(fd)
	return unix.Fchown(fd, spec.UID, spec.GID)
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
