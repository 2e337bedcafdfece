package qemu

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/internal/host"
	"banger/vmm"

	"golang.org/x/sys/unix"
)

// impostor listens in place of one of a VM's sockets, and sends all that it reads to the channel.
func (b *bench) impostor(t *testing.T, name string) <-chan string {
	t.Helper()
	dir, err := host.OpenDir(b.spec.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	f, err := bind(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Listen(int(f.Fd()), 4); err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	heard := make(chan string, 64)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 64)
			for {
				n, err := c.Read(buf)
				if n > 0 {
					heard <- string(buf[:n])
				}
				if err != nil {
					break
				}
			}
			c.Close()
		}
	}()
	return heard
}

// The daemon connects to no process but the one that it started.
func TestSocketsOfAnotherProcess(t *testing.T) {
	for _, name := range socketNames {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			m := b.start(t)
			proc := m.Process()
			if name == agentSocket { // the daemon dials it again and again
				heard := b.impostor(t, name)
				if _, err := m.Guest().Ping(within(t, 300*time.Millisecond)); err == nil {
					t.Error("the impostor answers for the guest")
				}
				if len(heard) > 0 {
					t.Errorf("the impostor heard %q", <-heard)
				}
				m.Close()
				return
			}
			m.Close()
			heard := b.impostor(t, name)
			_, err := b.Adopt(within(t, 30*time.Second), b.spec, proc, b.notify)
			if err == nil || !strings.Contains(err.Error(), "its socket is process") {
				t.Errorf("adopted: %v", err)
			}
			if len(heard) > 0 {
				t.Errorf("the impostor heard %q", <-heard)
			}
			if n := b.processes(); n != 0 {
				t.Errorf("%d processes left", n)
			}
		})
	}
}

// rawStart starts a QEMU as a daemon that died right after that.
func (b *bench) rawStart(t *testing.T, v *commands) vmm.Process {
	t.Helper()
	files, err := inherited(b.spec, v.fds, nil)
	if err != nil {
		t.Fatal(err)
	}
	user, err := credential(b.spec, "tcg")
	if err != nil {
		t.Fatal(err)
	}
	p, err := spawn(append([]string{b.binary}, v.args...), b.spec.LogFile, files,
		cell{program: b.program, user: user})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	t.Cleanup(func() { p.reap() })
	return p.Process
}

// A daemon may die before QEMU has its kernel's command line: then nothing has run, and nothing
// is left.
func TestAdoptOfWhatHasNotBegun(t *testing.T) {
	b := newBench(t)
	dropped := make(droppedGroups, 1)
	b.groups = dropped
	proc := b.rawStart(t, commandLine(b.spec, b.platform))
	if n := b.processes(); n != 1 {
		t.Fatalf("%d processes", n)
	}
	_, err := b.Adopt(within(t, 30*time.Second), b.spec, proc, b.notify)
	if !errors.Is(err, vmm.ErrNotFound) {
		t.Errorf("adopted: %v", err)
	}
	if n, s := b.processes(), b.sockets(); n != 0 || s != nil {
		t.Errorf("left: %d processes, %q", n, s)
	}
	if id := dropped.last(); id != b.spec.ID {
		t.Errorf("the cgroup of %q was removed", id)
	}
	b.rawStart(t, commandLine(b.spec, b.platform))
	b.sweep(t, b.spec.StateDir, false)
	if id := dropped.last(); id != b.spec.ID {
		t.Errorf("a sweep removed the cgroup of %q", id)
	}
}

// droppedGroups receives the VMs whose groups are removed.
type droppedGroups chan string

func (d droppedGroups) last() string {
	select {
	case id := <-d:
		return id
	default:
		return ""
	}
}

func (droppedGroups) Lacks() map[vmm.Feature]string { return nil }
func (droppedGroups) Join(
	context.Context, string, string, int, *vmm.Limits,
) (vmm.Group, error) {
	return nil, errors.ErrUnsupported
}
func (droppedGroups) Find(string, int) vmm.Group { return nil }
func (d droppedGroups) Drop(id string)           { d <- id }
func (droppedGroups) Sweep()                     {}
func (droppedGroups) Close()                     {}

// A VMM of an earlier banger has paths in place of descriptors.
func TestAdoptOfAnEarlierBanger(t *testing.T) {
	b := newBench(t)
	console := filepath.Join(b.spec.Dir, vmm.ConsoleFile)
	v := commandLine(b.spec, b.platform)
	var old commands
	for i := 0; i < len(v.args); i++ {
		switch a := v.args[i]; {
		case a == "-add-fd":
			i++
		case a == preconfig:
			old.add("-append", v.kernelLine)
		case a == stopped:
		case strings.HasPrefix(a, "socket,id=console,"):
			old.add(strings.Replace(a, "logfile=/dev/fdset/1", "logfile="+escape(console), 1))
		default:
			old.add(a)
		}
	}
	old.fds = v.fds
	proc := b.rawStart(t, &old)
	m := b.adopt(t, proc)
	if m.Process() != proc || m.Paused() {
		t.Errorf("adopted %+v, paused %v", m.Process(), m.Paused())
	}
	if err := m.Kill(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	b.exit(t, m)
	// Found by its UUID, it is ended when nobody wants it.
	b.rawStart(t, &old)
	b.sweep(t, b.spec.StateDir, false)
	if n := b.processes(); n != 0 {
		t.Errorf("%d processes left", n)
	}
}

// Anybody may start a program with a VM's arguments.
func TestAdoptOfAnotherUsersProcess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root starts processes of other users: run the suite as root")
	}
	b := newBench(t)
	b.runAsOther(t)
	v := commandLine(b.spec, b.platform)
	b.spec.UID, b.spec.GID = testUID-1, testUID-1
	proc := b.rawStart(t, v)
	b.spec.UID, b.spec.GID = testUID, testUID
	for _, p := range []vmm.Process{proc, {}} {
		_, err := b.Adopt(within(t, 30*time.Second), b.spec, p, b.notify)
		if !errors.Is(err, vmm.ErrNotFound) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if err := unix.Kill(proc.PID, 0); err != nil {
		t.Errorf("another user's process was ended: %v", err)
	}
}

// A VMM that overwrites its arguments is found again all the same, and does not live on without its
// daemon.
func TestAdoptOfOverwrittenArguments(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root's daemon knows a VMM by its user: run the suite as root")
	}
	b := newBench(t)
	b.runAsOther(t)
	m := b.start(t)
	proc := m.Process()
	m.Close()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(proc.PID) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	const argStart, argEnd = 48 - 1, 49 - 1 // of proc_pid_stat(5); the name has no space
	fields := strings.Fields(string(stat))
	begin, err1 := strconv.ParseInt(fields[argStart], 10, 64)
	end, err2 := strconv.ParseInt(fields[argEnd], 10, 64)
	mem, err3 := os.OpenFile("/proc/"+strconv.Itoa(proc.PID)+"/mem", os.O_RDWR, 0)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	_, err = mem.WriteAt(make([]byte, end-begin), begin)
	if err := errors.Join(err, mem.Close()); err != nil {
		t.Fatal(err)
	}
	if n := b.processes(); n != 0 {
		t.Fatalf("%d processes have the VM's arguments still", n)
	}
	second := b.adopt(t, proc)
	if err := second.Kill(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(proc.PID, 0); err == nil {
		t.Error("the process lives")
	}
}
