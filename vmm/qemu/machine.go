package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"banger/internal/host"
	"banger/vmm"
	"banger/vmm/guest"

	"golang.org/x/sys/unix"
)

const (
	lastWords  = time.Second          // to read what a process wrote before its end
	listenTick = 2 * time.Millisecond // between attempts to connect before QEMU listens
)

// Machine is one QEMU. Many goroutines may call its methods.
type Machine struct {
	vmm.BaseMachine

	// Immutable once serve runs.
	id       string
	accel    string
	proc     *process
	dir      string
	dirFD    *os.File // sockets are dialled through it, however long the path
	log      *os.File // the VM's log, for QEMU's last line; nil if it cannot be read
	logStart int64    // its length before this QEMU
	notify   func(vmm.Notice)
	qmp      *qmpClient
	serial   *console
	guest    *guest.Client
	firmware bool      // the guest's kernel is its own
	group    vmm.Group // nil if it is in the daemon's

	done    chan struct{} // closed when the process is gone and exit is valid
	closing chan struct{} // closed by Close
	ended   chan struct{} // closed when the goroutines have ended
	once    sync.Once
	exit    vmm.Exit // set before done is closed
	paused  atomic.Bool
	killed  atomic.Bool
	notices chan vmm.Notice

	mu       sync.Mutex // guards the fields below
	shutdown string     // reason of the SHUTDOWN event
	panicked string     // the kernel's line about its panic
	ioError  string     // of the last BLOCK_IO_ERROR
	noSpace  string     // the disk of ioError, if it found no space
	full     bool       // the CPUs were stopped because of noSpace
	pausing  int        // calls of Pause under way

	limiting sync.Mutex // held over changes of limits; guards the fields below
	limits   vmm.Limits // in force
	limited  bool       // limits are what is in force
	bounded  vmm.Spec   // whose disks and snapshots bound the files
}

// newMachine prepares a machine. It owns p only once serve was called.
func newMachine(
	spec *vmm.Spec, p *process, accel string, vsock *guest.Vsock, notify func(vmm.Notice),
) (*Machine, error) {
	dir, err := host.OpenDir(spec.Dir)
	if err != nil {
		return nil, err
	}
	m := &Machine{
		id: spec.ID, accel: accel, proc: p, dir: spec.Dir, dirFD: dir, notify: notify,
		firmware: spec.Image.Firmware, bounded: *spec,
		done: make(chan struct{}), closing: make(chan struct{}), ended: make(chan struct{}),
		notices: make(chan vmm.Notice, 16),
	}
	m.bounded.NIC.Tap, m.bounded.Log, m.bounded.LogFile = nil, nil, nil // the caller closes them
	if spec.LogFile != nil {
		if f, err := os.Open(selfFD(int(spec.LogFile.Fd()))); err == nil {
			m.log = f
			if info, err := f.Stat(); err == nil {
				m.logStart = info.Size()
			}
		}
	}
	m.guest = guest.NewClient(m.dialAgent, vsock)
	return m, nil
}

// dial connects to a socket of the process. It refuses a socket of any other process.
func (m *Machine) dial(ctx context.Context, name string) (*net.UnixConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", through(m.dirFD, name))
	if err == nil {
		if err = checkPeer(conn.(*net.UnixConn), m.proc.PID); err != nil {
			conn.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot reach %s: %w", name, err)
	}
	return conn.(*net.UnixConn), nil
}

// dialFirst dials until QEMU listens, which is some time after its start.
func (m *Machine) dialFirst(ctx context.Context, name string) (*net.UnixConn, error) {
	tick := time.NewTicker(listenTick)
	defer tick.Stop()
	for {
		conn, err := m.dial(ctx, name)
		if !errors.Is(err, unix.ECONNREFUSED) || m.proc.gone() {
			return conn, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (m *Machine) dialAgent(ctx context.Context) (net.Conn, error) {
	if m.isDone() {
		return nil, vmm.ErrNotRunning
	}
	conn, err := m.dial(ctx, agentSocket)
	if err != nil {
		return nil, err // and a nil interface
	}
	return conn, nil
}

// connect opens the monitor and the console.
func (m *Machine) connect(ctx context.Context) error {
	conn, err := m.dialFirst(ctx, qmpSocket)
	if err != nil {
		return err
	}
	if m.qmp, err = newQMP(ctx, conn, m.event); err != nil {
		return err
	}
	if conn, err = m.dial(ctx, consoleSocket); err != nil {
		return err
	}
	// It is opened for trimming alone, which a VM can do without.
	file, err := host.OpenRegular(filepath.Join(m.dir, vmm.ConsoleFile), os.O_RDWR, host.AnyOwner)
	if err != nil {
		file = nil
	}
	m.serial = newConsole(conn, file, m.kernelPanicked)
	return nil
}

// disconnect closes everything but the process.
func (m *Machine) disconnect() {
	m.guest.Close()
	if m.qmp != nil {
		m.qmp.Close()
	}
	if m.serial != nil {
		m.serial.Close()
	}
	m.dirFD.Close()
	m.log.Close()
}

// serve starts the goroutines that wait for the process's end and deliver notices.
func (m *Machine) serve() {
	gone, waited := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(waited)
		if m.proc.wait() == nil {
			close(gone)
		}
	}()
	go func() {
		defer close(m.ended)
		defer func() { <-waited }()
		for {
			select {
			case n := <-m.notices:
				m.notify(n)
			case <-gone:
				m.bury()
				return
			case <-m.closing:
				return
			}
		}
	}()
}

// Process implements vmm.Machine.
func (m *Machine) Process() vmm.Process { return m.proc.Process }

// Accel is what runs the CPUs: kvm or tcg.
func (m *Machine) Accel() string { return m.accel }

// Done implements vmm.Machine.
func (m *Machine) Done() <-chan struct{} { return m.done }

func (m *Machine) isDone() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// Exit implements vmm.Machine.
func (m *Machine) Exit() vmm.Exit {
	if !m.isDone() {
		return vmm.Exit{}
	}
	return m.exit
}

// Kill implements vmm.Machine. SIGKILL also ends a QEMU that is stopped or hangs.
func (m *Machine) Kill(ctx context.Context) error {
	if m.isDone() {
		return nil
	}
	m.killed.Store(true)
	if err := m.proc.kill(); err != nil && !m.isDone() {
		return fmt.Errorf("cannot kill process %d: %w", m.proc.PID, err)
	}
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close implements vmm.Machine. The guest runs on; another Driver may adopt it afterwards.
func (m *Machine) Close() error {
	m.once.Do(func() {
		close(m.closing)
		m.proc.pidfd.Close()
		<-m.ended
		m.disconnect()
	})
	return nil
}

// call makes a QMP call on a machine that may be gone.
func (m *Machine) call(ctx context.Context, command string, args, answer any) error {
	if m.isDone() {
		return vmm.ErrNotRunning
	}
	return m.qmp.call(ctx, command, args, answer)
}

// PressPower implements vmm.Machine. The init of a cloud image acts on ACPI's button. In a
// guest of banger's own kernel there may be nobody who does.
func (m *Machine) PressPower(ctx context.Context) error {
	if !m.firmware {
		return vmm.ErrUnsupported
	}
	return m.call(ctx, "system_powerdown", nil, nil)
}

// Guest implements vmm.Machine.
func (m *Machine) Guest() guest.Agent { return m.guest }

// Console implements vmm.Machine.
func (m *Machine) Console() vmm.Console { return m.serial }
