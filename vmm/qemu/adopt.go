package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"banger/internal/host"
	"banger/vmm"

	"golang.org/x/sys/unix"
)

const (
	adoptDeadline = 2 * time.Second
	killDeadline  = 10 * time.Second
)

// Adopt implements vmm.Driver. It ends a process of the VM that is stopped or silent for 2 s: left
// alone, that would hold the VM's disks for ever. It also ends a QEMU whose machine was not made
// yet when its daemon died.
func (d *Driver) Adopt(
	ctx context.Context, spec *vmm.Spec, proc vmm.Process, notify func(vmm.Notice),
) (vmm.Machine, error) {
	spec, err := absolute(spec)
	if err != nil {
		return nil, err
	}
	p := find(spec, proc)
	if p == nil {
		removeSockets(spec.Dir)
		return nil, fmt.Errorf("no QEMU of %s lives: %w", spec.Name, vmm.ErrNotFound)
	}
	m, err := d.takeOver(ctx, spec, p, notify)
	if err == nil {
		return m, nil
	}
	if ctx.Err() != nil {
		p.pidfd.Close()
		return nil, ctx.Err()
	}
	ended, cancel := context.WithTimeout(ctx, killDeadline)
	defer cancel()
	if killErr := d.end(ended, spec.ID, p); killErr != nil {
		return nil, fmt.Errorf("cannot adopt %s: %w; %v", spec.Name, err, killErr)
	}
	removeSockets(spec.Dir)
	if errors.Is(err, errNotBegun) {
		return nil, fmt.Errorf("%s was not started to its end: %w", spec.Name, vmm.ErrNotFound)
	}
	return nil, fmt.Errorf("cannot adopt %s, so process %d was ended: %w", spec.Name, p.PID, err)
}

// end ends a VM's process that no Machine owns, and removes its group.
func (d *Driver) end(ctx context.Context, uuid string, p *process) error {
	err := p.end(ctx)
	if err == nil && d.groups != nil {
		d.groups.Drop(uuid)
	}
	return err
}

// errNotBegun marks a QEMU that waits for its kernel's command line.
var errNotBegun = errors.New("it waits for its kernel's command line")

// find returns the VM's process: the recorded one, else one with its UUID and its directory, else
// nil. The process must belong to the VM's user: anybody may start a program with such arguments.
func find(spec *vmm.Spec, proc vmm.Process) *process {
	if proc.PID != 0 {
		if p := openOwn(spec, proc.PID, proc.StartTime); p != nil {
			return p
		}
	}
	for _, pid := range pids() {
		if uuid, _ := readCommandLine(pid); uuid == spec.ID {
			if p := openOwn(spec, pid, 0); p != nil {
				return p
			}
		}
	}
	return nil
}

// openOwn opens a process if it is the VM's, and returns nil otherwise. A VMM may overwrite its
// arguments: one that root's daemon recorded with its start time, and has the VM's own user, is the
// VM's without them.
func openOwn(spec *vmm.Spec, pid int, start uint64) *process {
	p, err := openProcess(pid, start)
	if err != nil {
		return nil
	}
	// The disks' owner is the user of the start, whatever the configuration is now.
	owner := ownerOf(vmm.DisksDir(spec.Dir))
	if owner < 0 {
		owner = ownerOf(spec.Dir) // of an earlier banger
	}
	uuid, log := readCommandLine(pid)
	recorded := start != 0 && owner > 0 && owner != os.Geteuid()
	named := uuid == spec.ID && log == filepath.Join(spec.Dir, vmm.ConsoleFile)
	if (recorded || named) && ownerOf("/proc/"+strconv.Itoa(pid)) == owner {
		return p
	}
	p.pidfd.Close()
	return nil
}

// ownerOf returns the uid of a file or, by its directory in /proc, of a process; -1 if it is gone.
func ownerOf(path string) int {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return -1
	}
	return int(st.Uid)
}

func (d *Driver) takeOver(
	ctx context.Context, spec *vmm.Spec, p *process, notify func(vmm.Notice),
) (*Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, adoptDeadline)
	defer cancel()
	accel, args := tcg, readArgs(p.PID)
	if option(args, "-accel") == kvm {
		accel = kvm
	}
	m, err := newMachine(spec, p, accel, d.toGuest(spec, guestCID(args)), notify)
	if err != nil {
		return nil, err
	}
	if err := m.adopt(ctx); err != nil {
		m.disconnect()
		return nil, err
	}
	d.regroup(ctx, spec, m)
	m.serve()
	return m, nil
}

func (m *Machine) adopt(ctx context.Context) error {
	if err := m.connect(ctx); err != nil {
		return err
	}
	var id struct {
		UUID string `json:"UUID"`
	}
	if err := m.qmp.call(ctx, "query-uuid", nil, &id); err != nil {
		return err
	}
	if id.UUID != m.id {
		return fmt.Errorf("it is the VM %s", id.UUID)
	}
	status, err := m.status(ctx)
	if err == nil && status == "prelaunch" {
		err = errNotBegun
	}
	if err != nil {
		return err
	}
	m.paused.Store(status != "running")
	m.setFull(status == "io-error") // or another failure of a disk, which a resume will show
	return nil
}

// checkPeer refuses a connection to any process but pid. The kernel names the process that called
// listen(2) on the socket (unix(7), SO_PEERCRED).
func checkPeer(conn *net.UnixConn, pid int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if int(cred.Pid) != pid {
		return fmt.Errorf("its socket is process %d's", cred.Pid)
	}
	return nil
}

// Sweep implements vmm.Driver.
func (d *Driver) Sweep(ctx context.Context, stateDir string, keep func(uuid string) bool) error {
	stateDir, err := filepath.Abs(stateDir)
	if err != nil {
		return err
	}
	ours := func(pid int) (string, bool) {
		uuid, log := readCommandLine(pid)
		return uuid, uuid != "" && strings.HasPrefix(log, stateDir+"/") && !keep(uuid)
	}
	ctx, cancel := context.WithTimeout(ctx, killDeadline)
	defer cancel()
	var ends []chan error // side by side: one that hangs in the kernel needs the whole time
	for _, pid := range pids() {
		if _, ok := ours(pid); !ok {
			continue
		}
		p, err := openProcess(pid, 0)
		if err != nil {
			continue // gone meanwhile
		}
		uuid, ok := ours(pid) // again, now that the pid is held
		if !ok {
			p.pidfd.Close()
			continue
		}
		d.log.Info("ending a leftover QEMU", "pid", pid, "uuid", uuid)
		ended := make(chan error, 1)
		go func() { ended <- d.end(ctx, uuid, p) }()
		ends = append(ends, ended)
	}
	for _, ended := range ends {
		err = errors.Join(err, <-ended)
	}
	if d.groups != nil {
		d.groups.Sweep()
	}
	return err
}

// pids lists the visible processes, none where /proc cannot be read.
func pids() []int {
	all, _ := host.PIDs()
	return all
}

func readArgs(pid int) []string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil || len(b) == 0 {
		return nil
	}
	return strings.Split(string(bytes.TrimSuffix(b, []byte{0})), "\x00")
}

// readCommandLine returns the UUID and the console's file of a QEMU of this package. Both are empty
// for any other process.
func readCommandLine(pid int) (uuid, log string) { return parseArgs(readArgs(pid)) }

// parseArgs finds the UUID, and the console's file beside its descriptor. An earlier banger had
// that file in its chardev.
func parseArgs(args []string) (uuid, log string) {
	for i, a := range args {
		switch {
		case i == 0:
			continue
		case args[i-1] == "-add-fd":
			_, log, _ = strings.Cut(a, ",opaque=")
			if filepath.Base(log) != vmm.ConsoleFile {
				continue
			}
		case args[i-1] == "-chardev" && strings.HasPrefix(a, "socket,id=console,"):
			_, a, _ = strings.Cut(a, ",logfile=")
			var ok bool
			if log, ok = strings.CutSuffix(a, ",logappend=on"); !ok {
				continue
			}
		default:
			continue
		}
		return option(args, "-uuid"), strings.ReplaceAll(log, ",,", ",")
	}
	return "", ""
}

// Owner returns the state directory of the daemon that started a QEMU with these arguments, and the
// UUID of its VM. Both are empty for any other process. Anybody may start a process with such
// arguments.
func Owner(args []string) (stateDir, uuid string) {
	uuid, log := parseArgs(args)
	vms := filepath.Dir(filepath.Dir(log))
	if uuid == "" || !filepath.IsAbs(vms) || filepath.Base(vms) != "vms" ||
		!strings.HasPrefix(filepath.Base(args[0]), "qemu-system-") {
		return "", ""
	}
	return filepath.Dir(vms), uuid
}

// option returns the argument after the first occurrence of name.
func option(args []string, name string) string {
	for i, a := range args {
		if a == name && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}
