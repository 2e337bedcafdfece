// Package qemu runs VMs in QEMU.
//
// [New] returns a vmm.Driver. A machine is one process in a session of its own, sandboxed. Where
// the daemon is root, it runs as the VM's own user, and before its CPUs run it has lost all of the
// host but what it has open (confine.go). The daemon binds the sockets `qmp`, `console` and `agent`
// in the VM's directory, and QEMU inherits them. A later daemon finds the same QEMU there again
// ([Driver.Adopt]): only the process itself has to survive the daemon.
//
// A command line is a list of devices (devices.go), each with its arguments and descriptors. The
// microvm machine is used where QEMU has it; q35 otherwise, and for disks that firmware boots. KVM
// runs the CPUs where the processor shows that it can, TCG otherwise. The VM's log has the command
// line.
//
// Each [Machine] runs four goroutines: the reader of the QMP client, the drain of the console, one
// that waits on the pidfd and one that calls notify. Machine.Close ends them. No call hangs on a
// silent QEMU: QMP calls have deadlines, and Kill needs nothing from QEMU.
package qemu

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/internal/host"
	"banger/internal/qemus"
	"banger/vmm"
)

// Options configure a Driver.
type Options struct {
	Binary  string       // path of QEMU; qemu-system-x86_64 of PATH if empty
	Accel   string       // auto (or empty), kvm or tcg
	Machine string       // auto (or empty), microvm or q35
	Log     *slog.Logger // slog.Default() if nil

	// UserWorld lets guests with vmm.NetUser reach whatever the host reaches, including services
	// on its loopback. Otherwise they reach nothing, and only forwarded ports lead to them.
	UserWorld bool

	Groups vmm.Groups // cgroups for QEMUs; nil for none
}

// Driver starts QEMUs. It holds no resources and needs no closing.
type Driver struct {
	vmm.BaseDriver
	log    *slog.Logger
	groups vmm.Groups
	platform
	program     string // binary without symbolic links
	confinement confinement
}

// New examines QEMU and the host. It runs QEMU once for the list of its machines, and may measure
// the TSC for 50 ms. It fails with ErrInvalid for unknown words.
func New(o Options) (*Driver, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Binary == "" {
		o.Binary = qemus.Program
	}
	path, err := exec.LookPath(o.Binary)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return nil, fmt.Errorf("no QEMU (install qemu-system-x86): %w", err)
	}
	accel, why, err := chooseAccel(o.Accel)
	if err != nil {
		return nil, err
	}
	program, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	confined, machines, err := confine(o.Log, program, accel)
	if err != nil {
		return nil, err
	}
	machine, err := chooseMachine(o.Machine, machines)
	if err != nil {
		return nil, err
	}
	p := platform{binary: path, accel: accel, machine: machine, userWorld: o.UserWorld}
	if machine == microvm {
		p.tscKHz, p.tscInStep = hostTSC(), tscInStep()
	}
	o.Log.Info("qemu", "binary", path, "machine", machine, "accel", accel, "because", why,
		"tsc_khz", p.tscKHz, "confined_by", confined.String())
	can := vmm.Capabilities{Name: "qemu", Accel: accel, MaxCPUs: maxCPUs,
		Overhead: mostOverhead(accel), Lacks: map[vmm.Feature]string{}}
	if o.Groups != nil {
		maps.Copy(can.Lacks, o.Groups.Lacks())
	}
	if !o.UserWorld {
		// With restrict=on libslirp drops every datagram of a guest, answers included (udp_input).
		can.Lacks[vmm.FeatureUDP] = "with net = user a guest's answers to datagrams are dropped " +
			"unless the daemon's user_world is on; use net = bridge"
	}
	if confined.view == nil {
		can.Lacks[vmm.FeatureConfined] = confined.missing
	}
	return &Driver{vmm.BaseDriver{Can: can}, o.Log, o.Groups, p, program, confined}, nil
}

// overhead is how many bytes a QEMU may use beside the guest's memory and translated code, the
// pages of the kernel that it has mapped included. One with 4 CPUs was measured at 50 MiB.
const overhead = 64 << 20

// HostMemory implements vmm.Driver.
func (d *Driver) HostMemory(spec *vmm.Spec) int64 {
	n := memory(spec) + overhead
	if d.accel == tcg {
		n += translationBuffer(spec) << 20
	}
	return n
}

// chooseMachine returns the machine to use. machines is QEMU's own list.
func chooseMachine(wish, machines string) (string, error) {
	switch wish {
	case microvm, "q35":
		return wish, nil
	case "", "auto":
	default:
		return "", fmt.Errorf("machine is auto, microvm or q35, not %q: %w", wish, vmm.ErrInvalid)
	}
	for line := range strings.Lines(machines) {
		if strings.HasPrefix(line, microvm+" ") {
			return microvm, nil
		}
	}
	return "q35", nil
}

// listMachines runs QEMU for the list of its machines.
func listMachines(c cell) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var out []byte
	err := host.OnOwnThread(func() error {
		cmd := exec.CommandContext(ctx, c.program, "-M", "help")
		cmd.Dir, cmd.SysProcAttr = "/", new(syscall.SysProcAttr)
		err := c.enter(cmd.SysProcAttr)
		if err == nil {
			out, err = cmd.Output()
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("cannot list QEMU's machines: %w", err)
	}
	return string(out), nil
}

var (
	_ vmm.Driver  = (*Driver)(nil)
	_ vmm.Machine = (*Machine)(nil)
)
