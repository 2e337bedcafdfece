package integration

import (
	"bytes"
	"context"
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
)

// TestCrashFrozen kills the daemon while a real guest's file systems stand still for a snapshot, before anything is in the disk and after all is: the
// guest goes on by itself, and the next daemon has neither the snapshot nor anything of it in the disk, and goes on with the VM.
func TestCrashFrozen(t *testing.T) {
	t.Parallel()
	if ok, cure := realVMs(); !ok {
		t.Skip(cure)
	}
	if _, err := os.Stat("/dev/vhost-vsock"); err == nil {
		t.Skip("agents are reached over vsock here, where nobody can come between them and the daemon")
	}
	d := testDaemon(t, "qemu")
	d.boot(t, "db", "builtin", "disk 16M\n")
	pid := d.read(t, "vms/db/pid")
	// Each write is timed by the guest's own clock, in whole seconds; what took longer than any disk is told.
	const writer = `while :; do read a x </proc/uptime; echo x >>/work/ticks; read b x </proc/uptime; n=$((${b%.*} - ${a%.*})); [ $n -lt 3 ] || echo $n >>/held; sleep 0.1; done`
	if out, err := d.client("exec", "-d", "db", "--", "/bin/sh", "-c", writer).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i, c := range []struct {
		name   string
		host   string // what of the daemon's requests is held back
		guest  string // what of the agent's answers is
		inDisk int
	}{
		{"before", "", `{"count":1,`, 0}, // it stands still; the daemon does not know yet
		{"after", "POST /thaw ", "", 1},  // the disk has the snapshot; the record does not say so yet
	} {
		must(t, d.signal(syscall.SIGKILL))
		between := comeBetween(t, filepath.Join(filepath.Dir(d.disk(t)), "agent"), c.host, c.guest)
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
		between.end(t)
		must(t, d.start())
		if state, now := d.read(t, "vms/db/state"), d.read(t, "vms/db/pid"); state != "running" || now != pid {
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

// middle stands between a daemon and an agent, and lets pass what they say until one says what it waits for.
type middle struct {
	path, far   string
	listener    net.Listener
	host, guest string
	held        chan struct{} // closed when it holds something back
	hold        sync.Once
	closing     context.Context
	close       context.CancelFunc
	done        chan struct{} // closed when its goroutines have ended
}

// comeBetween takes the place of the socket path, until end; what is empty is not waited for.
func comeBetween(t *testing.T, path, host, guest string) *middle {
	t.Helper()
	m := &middle{path: path, far: path + ".far", host: host, guest: guest, held: make(chan struct{}), done: make(chan struct{})}
	must(t, os.Rename(path, m.far))
	var err error
	if m.listener, err = net.Listen("unix", path); err != nil {
		t.Fatal(err)
	}
	m.closing, m.close = context.WithCancel(context.Background())
	go m.serve()
	t.Cleanup(m.stop)
	return m
}

// serve joins one connection after the other: an agent has one host.
func (m *middle) serve() {
	defer close(m.done)
	for {
		near, err := m.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("unix", m.far)
		if err != nil {
			near.Close()
			continue // the VM has ended
		}
		one, cancel := context.WithCancel(m.closing)
		var both sync.WaitGroup
		both.Add(2)
		pass := func(to, from net.Conn, until string) {
			defer both.Done()
			defer cancel()
			m.pass(to, from, until)
		}
		go pass(far, near, m.host)
		go pass(near, far, m.guest)
		<-one.Done()
		near.Close()
		far.Close()
		both.Wait()
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
			_, _ = io.Copy(io.Discard, from) // until who says it has gone
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
	m.close()
	m.listener.Close() // which removes its path
	<-m.done
}

// end gives the socket back.
func (m *middle) end(t *testing.T) {
	t.Helper()
	m.stop()
	must(t, os.Rename(m.far, m.path))
}
