package integration

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCrashFrozen kills the daemon while a real guest's file systems are frozen for a snapshot,
// before and after the snapshot is in the disk. The guest thaws by itself. The next daemon removes
// the snapshot and goes on with the VM.
func TestCrashFrozen(t *testing.T) {
	t.Parallel()
	needRealVMs(t)
	if _, err := os.Stat("/dev/vhost-vsock"); err == nil {
		t.Skip("the agent is connected by vsock, which no test can intercept: rmmod vhost_vsock")
	}
	d := testDaemon(t, "qemu")
	d.boot(t, "db", "builtin", "disk 16M\n")
	pid := d.read(t, "vms/db/pid")
	// The guest's own clock times each write in whole seconds, and /held lists the slow ones.
	const writer = `while :; do
	read a x </proc/uptime; echo x >>/work/ticks; read b x </proc/uptime
	n=$((${b%.*} - ${a%.*})); [ $n -lt 3 ] || echo $n >>/held; sleep 0.1
done`
	out, err := d.client("exec", "-d", "db", "--", "/bin/sh", "-c", writer).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i, c := range []struct {
		name   string
		host   string // what of the daemon's requests is held back
		guest  string // what of the agent's answers is
		inDisk int
	}{
		{"before", "", `{"count":1,`, 0}, // it stands still; the daemon does not know yet
		{"after", "POST /thaw ", "", 1},  // the disk has the snapshot, the record does not
	} {
		must(t, d.signal(syscall.SIGKILL))
		socket := filepath.Join(filepath.Dir(d.disk(t)), "..", "agent")
		between := comeBetween(t, pid, socket, c.host, c.guest)
		must(t, d.start())
		must(t, healthy(d, "db"))
		made := make(chan error, 1)
		go func() { made <- os.Mkdir(d.path("db", "snapshots", c.name), 0o755) }()
		select {
		case <-between.held:
		case err := <-made:
			t.Fatalf("%s: the snapshot was not held up: %v", c.name, err)
		case <-time.After(bootTime):
			t.Fatalf("%s: the guest was not asked to stand still", c.name)
		}
		must(t, d.signal(syscall.SIGKILL))
		if err := <-made; err == nil {
			t.Errorf("%s: acknowledged by a daemon that was dead", c.name)
		}
		if n := inDisk(t, d); n != c.inDisk {
			t.Errorf("%s: %d snapshots are in the disk when the daemon dies", c.name, n)
		}
		between.stop()
		must(t, d.start())
		state, now := d.read(t, "vms/db/state"), d.read(t, "vms/db/pid")
		if state != "running" || now != pid {
			t.Errorf("%s: the VM is %s, process %s", c.name, state, now)
		}
		must(t, healthy(d, "db"))
		waitUntil(t, "an end of the write that was held up", func() bool {
			return strings.Count(d.inGuest(t, "db", "cat /held 2>/dev/null || :"), "\n") > i
		})
		if left, err := os.ReadDir(d.path("db", "snapshots")); err != nil || len(left) > 0 {
			t.Errorf("%s: left are %v, %v", c.name, left, err)
		}
		waitUntil(t, "a disk without a snapshot", func() bool { return inDisk(t, d) == 0 })
	}
	// The agent's limit is 5 s; the machine may be busy, and the clock has whole seconds.
	held := strings.Fields(d.inGuest(t, "db", "cat /held"))
	for _, h := range held {
		if s, err := strconv.Atoi(h); err != nil || s > 15 {
			t.Errorf("a write was held up for %s s", h)
		}
	}
	t.Logf("seconds that writes were held up: %v", held)
	must(t, os.Mkdir(d.path("db", "snapshots", "whole"), 0o755))
	if frozen := d.read(t, "vms/db/snapshots/whole/frozen"); frozen != "1" {
		t.Errorf("frozen is %s afterwards", frozen)
	}
	must(t, write(d.path("db", "state"), "kill"))
	if out, err := exec.Command("qemu-img", "check", d.disk(t)).CombinedOutput(); err != nil {
		t.Errorf("the disk: %v: %s", err, out)
	}
}

// middle passes bytes between a daemon and an agent until one of them sends the awaited text.
type middle struct {
	listener    net.Listener
	far         net.Conn // of the agent, for all connections of the host
	host, guest string
	held        chan struct{} // closed when it holds something back
	hold        sync.Once
	work        sync.WaitGroup

	mu   sync.Mutex
	near net.Conn // of the host, nil before there is one
	over bool
}

// comeBetween accepts the host's connections to the agent of a process until stop. It holds back
// the first request with the text host or answer with the text guest; an empty text holds nothing.
// The daemon only trusts that process, so the test shares the process's own listening socket.
// QEMU accepts one connection at a time there. No daemon may run.
func comeBetween(t *testing.T, pid, path, host, guest string) *middle {
	t.Helper()
	socket := borrowAgent(t, pid)
	defer socket.Close()
	m := &middle{host: host, guest: guest, held: make(chan struct{})}
	var err error
	if m.far, err = net.Dial("unix", path); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "QEMU's own connection", func() bool {
		waiting := []unix.PollFd{{Fd: int32(socket.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(waiting, 0)
		return err == nil && n == 0
	})
	if m.listener, err = net.FileListener(socket); err != nil {
		t.Fatal(err)
	}
	m.work.Add(2)
	go m.serve()
	go func() {
		defer m.work.Done()
		m.pass(guestSide{m}, m.far, m.guest)
	}()
	t.Cleanup(m.stop)
	return m
}

// borrowAgent returns a copy of the socket on which a QEMU waits for the agent's host.
func borrowAgent(t *testing.T, pid string) *os.File {
	t.Helper()
	args, err := os.ReadFile("/proc/" + pid + "/cmdline")
	must(t, err)
	_, number, _ := strings.Cut(string(args), "socket,id=agent,fd=")
	number, _, _ = strings.Cut(number, ",")
	fd, err := strconv.Atoi(number)
	must(t, err)
	process, err := strconv.Atoi(pid)
	must(t, err)
	pidfd, err := unix.PidfdOpen(process, 0)
	must(t, err)
	defer unix.Close(pidfd)
	if fd, err = unix.PidfdGetfd(pidfd, fd, 0); err != nil {
		t.Skipf("cannot share QEMU's socket (run the suite as root): %v", err)
	}
	return os.NewFile(uintptr(fd), "agent")
}

// guestSide is where the guest's words go: to the host that is connected now, or nowhere.
type guestSide struct{ *middle }

func (g guestSide) Write(p []byte) (int, error) {
	g.mu.Lock()
	near := g.near
	g.mu.Unlock()
	if near != nil {
		_, _ = near.Write(p) // to one that has gone, or goes
	}
	return len(p), nil
}

// serve accepts one connection of the host after the other.
func (m *middle) serve() {
	defer m.work.Done()
	for {
		near, err := m.listener.Accept()
		if err != nil {
			return
		}
		m.mu.Lock()
		m.near = near
		over := m.over
		m.mu.Unlock()
		if !over {
			m.pass(m.far, near, m.host)
		}
		near.Close()
	}
}

// pass lets bytes through until they hold what is waited for, or end.
func (m *middle) pass(to io.Writer, from io.Reader, until string) {
	buf := make([]byte, 32<<10)
	var seen []byte
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if seen = append(seen, buf[:n]...); until != "" && bytes.Contains(seen, []byte(until)) {
			m.hold.Do(func() { close(m.held) })
			_, _ = io.Copy(io.Discard, from) // until the sender closes
			return
		}
		seen = seen[max(0, len(seen)-len(until)):]
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// stop returns when nobody stands between any more.
func (m *middle) stop() {
	m.mu.Lock()
	m.over = true
	if m.near != nil {
		m.near.Close()
	}
	m.mu.Unlock()
	m.listener.Close()
	m.far.Close()
	m.work.Wait()
}
