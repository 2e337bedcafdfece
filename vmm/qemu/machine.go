package qemu

import (
	"context"
	"encoding/json"
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

// lastWords is how long, after a process is gone, what it said before is waited for.
const lastWords = time.Second

// Machine is one QEMU. It implements vmm.Machine, vmm.Pauser, vmm.PowerButton, vmm.Guester,
// vmm.Consoler, vmm.BlockStatser, vmm.MetricsReader, vmm.Forwarder and, in disk.go, vmm.Snapshotter and vmm.DiskGrower; all methods may be called from many goroutines.
type Machine struct {
	id     string
	accel  string
	proc   *process
	dir    string
	dirFD  *os.File // sockets are dialled through it, however long the path
	out    *os.File // the VM's log, for QEMU's last line; nil if it cannot be read
	outPos int64
	notify func(vmm.Notice)
	qmp    *qmpClient
	line   *console
	guest  *guest.Client

	firmware bool // the guest's kernel is its own

	done    chan struct{} // the process is gone, exit is valid
	closing chan struct{} // Close was called
	ended   chan struct{} // the goroutines have ended
	once    sync.Once
	exit    vmm.Exit // set before done is closed
	paused  atomic.Bool
	killed  atomic.Bool
	notices chan vmm.Notice

	mu       sync.Mutex
	shutdown string // reason of the SHUTDOWN event
	panicked string // what the guest's kernel said
	ioError  string // of the last BLOCK_IO_ERROR
	noSpace  string // the disk that had it, if it was for want of space
	full     bool   // the CPUs were stopped because of that
	pausing  int    // calls of Pause under way
}

// newMachine prepares a machine; it owns p only once serve was called.
func newMachine(
	spec *vmm.Spec, p *process, accel string, vsock *guest.Vsock, notify func(vmm.Notice),
) (*Machine, error) {
	dir, err := host.OpenDir(spec.Dir)
	if err != nil {
		return nil, err
	}
	m := &Machine{
		id: spec.ID, accel: accel, proc: p, dir: spec.Dir, dirFD: dir, notify: notify, firmware: spec.Image.Firmware,
		done: make(chan struct{}), closing: make(chan struct{}), ended: make(chan struct{}),
		notices: make(chan vmm.Notice, 16),
	}
	if spec.LogFile != nil {
		if f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", spec.LogFile.Fd())); err == nil {
			m.out = f
			if info, err := f.Stat(); err == nil {
				m.outPos = info.Size()
			}
		}
	}
	m.guest = guest.NewClient(m.dialAgent, vsock)
	return m, nil
}

// listenTick is how often QEMU is looked at until it listens.
const listenTick = 2 * time.Millisecond

// dial connects to a socket of the process; another's is an error, whoever put it there.
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

// dialFirst is dial that waits until QEMU listens, which it does some time after its start.
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
	select {
	case <-m.done:
		return nil, vmm.ErrNotRunning
	default:
	}
	conn, err := m.dial(ctx, agentSocket)
	if err != nil {
		return nil, err
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
	// Trimming is all that it is opened for, which a VM can do without.
	file, err := host.OpenRegular(filepath.Join(m.dir, vmm.ConsoleFile), os.O_RDWR, host.AnyOwner)
	if err != nil {
		file = nil
	}
	m.line = newConsole(conn, file, m.panic)
	return nil
}

// disconnect closes all but the process.
func (m *Machine) disconnect() {
	m.guest.Close()
	if m.qmp != nil {
		m.qmp.Close()
	}
	if m.line != nil {
		m.line.Close()
	}
	m.dirFD.Close()
	if m.out != nil {
		m.out.Close()
	}
}

// serve starts the goroutine that tells what happens and sees the process end.
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

func (m *Machine) bury() {
	timer := time.NewTimer(lastWords)
	defer timer.Stop()
	for _, said := range []<-chan struct{}{m.qmp.done, m.line.done} {
		select {
		case <-said:
		case <-timer.C:
		}
	}
	ws, child := m.proc.reap()
	m.exit = m.verdict(ws, child)
	removeSockets(m.dir)
	close(m.done)
	for {
		select {
		case n := <-m.notices:
			m.notify(n)
			continue
		default:
		}
		break
	}
	m.notify(vmm.Notice{Kind: vmm.NoticeExited, Detail: m.exit.Reason})
}

// verdict says how the machine ended, from the SHUTDOWN event's reason (QMP
// schema, ShutdownCause) and the exit status where the process was our child.
func (m *Machine) verdict(ws unix.WaitStatus, child bool) vmm.Exit {
	e := m.judge(ws, child)
	switch {
	case child && ws.Signaled():
		e.Status = &guest.ExecStatus{Signal: int(ws.Signal())}
	case child:
		e.Status = &guest.ExecStatus{Code: ws.ExitStatus()}
	case m.killed.Load():
		e.Status = &guest.ExecStatus{Signal: int(unix.SIGKILL)}
	}
	return e
}

func (m *Machine) judge(ws unix.WaitStatus, child bool) vmm.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	last := ""
	if m.out != nil {
		if l := lastLine(m.out, m.outPos); l != "" {
			last = ": " + l
		}
	}
	switch {
	case m.panicked != "":
		return vmm.Exit{Reason: "the guest's kernel panicked: " + m.panicked}
	case m.killed.Load():
		return vmm.Exit{Reason: "killed"}
	case m.shutdown == "guest-shutdown":
		return vmm.Exit{Orderly: true, Reason: "the guest powered itself off"}
	case m.shutdown == "guest-reset":
		return vmm.Exit{Orderly: true, Reason: "the guest rebooted, which ends it"}
	case child && ws.Signaled():
		return vmm.Exit{Reason: fmt.Sprintf("the VMM was killed by signal %d (%s)", ws.Signal(), unix.SignalName(ws.Signal()))}
	case m.shutdown == "host-signal":
		return vmm.Exit{Reason: "the VMM was ended by a signal"}
	case child && ws.ExitStatus() != 0:
		return vmm.Exit{Reason: fmt.Sprintf("the VMM ended with status %d%s", ws.ExitStatus(), last)}
	}
	return vmm.Exit{Reason: "the VMM ended unexpectedly" + last}
}

// tell queues a notice; more than the queue holds are dropped, for a guest may cause any number.
func (m *Machine) tell(kind vmm.NoticeKind, detail string) {
	select {
	case m.notices <- vmm.Notice{Kind: kind, Detail: detail}:
	default:
	}
}

// panic is called for the kernel's own line on the console.
func (m *Machine) panic(line string) {
	m.mu.Lock()
	first := m.panicked == ""
	if first {
		m.panicked = line
	}
	m.mu.Unlock()
	if first {
		m.tell(vmm.NoticePanic, line)
	}
}

// event takes what QEMU tells (QMP schema, qapi/run-state.json and block-core.json).
func (m *Machine) event(e qmpEvent) {
	var data struct {
		Reason string `json:"reason"`
		Action string `json:"action"`
		Node   string `json:"node-name"`
		Full   bool   `json:"nospace"`
	}
	if len(e.Data) > 0 && json.Unmarshal(e.Data, &data) != nil {
		return
	}
	switch e.Name {
	case "SHUTDOWN":
		m.mu.Lock()
		m.shutdown = data.Reason
		m.mu.Unlock()
	case "GUEST_PANICKED":
		m.panic("reported by pvpanic")
	case "BLOCK_IO_ERROR":
		if data.Action == "stop" {
			m.mu.Lock()
			m.ioError, m.noSpace = fmt.Sprintf("disk %s: %s", data.Node, data.Reason), ""
			if data.Full {
				m.noSpace = data.Node
			}
			m.mu.Unlock()
		}
	case "STOP":
		m.paused.Store(true)
		m.mu.Lock()
		asked, why, disk := m.pausing > 0, m.ioError, m.noSpace
		m.ioError, m.noSpace = "", ""
		m.full = disk != "" && !asked
		m.mu.Unlock()
		switch {
		case asked && why == "":
			return
		case disk != "":
			m.tell(vmm.NoticeFull, disk)
			return
		}
		if why == "" {
			why = "not asked by banger"
		}
		m.tell(vmm.NoticePaused, "the VMM stopped the CPUs: "+why)
	case "RESUME":
		m.paused.Store(false)
		m.setFull(false)
	}
}

func (m *Machine) setFull(full bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.full = full
}

// Full implements vmm.Fuller.
func (m *Machine) Full() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.full
}

// Process implements vmm.Machine.
func (m *Machine) Process() vmm.Process { return m.proc.Process }

// Accel implements vmm.Machine.
func (m *Machine) Accel() string { return m.accel }

// Done implements vmm.Machine.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Exit implements vmm.Machine.
func (m *Machine) Exit() vmm.Exit {
	select {
	case <-m.done:
		return m.exit
	default:
		return vmm.Exit{}
	}
}

// Kill implements vmm.Machine. SIGKILL ends also a QEMU that is stopped or hangs.
func (m *Machine) Kill(ctx context.Context) error {
	select {
	case <-m.done:
		return nil
	default:
	}
	m.killed.Store(true)
	if err := m.proc.kill(); err != nil {
		select {
		case <-m.done:
			return nil
		default:
		}
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

// Paused reports whether the CPUs are stopped, as last told by QEMU.
func (m *Machine) Paused() bool { return m.paused.Load() }

func (m *Machine) status(ctx context.Context) (string, error) {
	var s struct {
		Status string `json:"status"`
	}
	err := m.qmp.call(ctx, "query-status", nil, &s)
	return s.Status, err
}

// call is a QMP call on a machine that may be gone.
func (m *Machine) call(ctx context.Context, command string, args, out any) error {
	select {
	case <-m.done:
		return vmm.ErrNotRunning
	default:
	}
	return m.qmp.call(ctx, command, args, out)
}

// Pause implements vmm.Pauser. It returns when the CPUs stand still.
func (m *Machine) Pause(ctx context.Context) error {
	m.mu.Lock()
	m.pausing++
	m.full = false
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.pausing--
		m.mu.Unlock()
	}()
	if err := m.call(ctx, "stop", nil, nil); err != nil {
		return err
	}
	m.paused.Store(true)
	return nil
}

// Resume implements vmm.Pauser.
func (m *Machine) Resume(ctx context.Context) error {
	// The event RESUME came before the answer; a STOP may have followed, of a disk that is still full.
	return m.call(ctx, "cont", nil, nil)
}

// PressPower implements vmm.PowerButton. What a cloud image has as its init acts on ACPI's button; in a guest that
// banger's own kernel boots there may be nobody who does.
func (m *Machine) PressPower(ctx context.Context) error {
	if !m.firmware {
		return vmm.ErrUnsupported
	}
	return m.call(ctx, "system_powerdown", nil, nil)
}

// Guest implements vmm.Guester.
func (m *Machine) Guest() guest.Agent { return m.guest }

// Console implements vmm.Consoler.
func (m *Machine) Console() vmm.Console { return m.line }

// BlockStats implements vmm.BlockStatser with query-blockstats.
func (m *Machine) BlockStats(ctx context.Context) (vmm.BlockStats, error) {
	var devices []struct {
		Stats struct {
			ReadBytes  uint64 `json:"rd_bytes"`
			WriteBytes uint64 `json:"wr_bytes"`
			ReadOps    uint64 `json:"rd_operations"`
			WriteOps   uint64 `json:"wr_operations"`
		} `json:"stats"`
	}
	if err := m.call(ctx, "query-blockstats", nil, &devices); err != nil {
		return vmm.BlockStats{}, err
	}
	var sum vmm.BlockStats
	for _, d := range devices {
		sum.ReadBytes += d.Stats.ReadBytes
		sum.WriteBytes += d.Stats.WriteBytes
		sum.ReadOps += d.Stats.ReadOps
		sum.WriteOps += d.Stats.WriteOps
	}
	return sum, nil
}

// metricsQueries are what Metrics asks for. query-stats (qapi/stats.json) gives nothing under TCG.
var metricsQueries = []struct {
	command string
	args    any
}{
	{"query-stats", map[string]string{"target": "vm"}},
	{"query-blockstats", nil},
	{"query-balloon", nil},
}

// Metrics implements vmm.MetricsReader with QMP's answers by command; what this QEMU cannot tell is left out.
func (m *Machine) Metrics(ctx context.Context) (json.RawMessage, error) {
	answers := map[string]json.RawMessage{}
	for _, q := range metricsQueries {
		var answer json.RawMessage
		err := m.call(ctx, q.command, q.args, &answer)
		var refused *qmpError
		switch {
		case err == nil:
			answers[q.command] = answer
		case !errors.As(err, &refused):
			return nil, err
		}
	}
	return json.Marshal(answers)
}

func removeSockets(dir string) {
	for _, name := range socketNames {
		os.Remove(filepath.Join(dir, name))
	}
}
