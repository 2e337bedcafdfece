package qemu

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/internal/host"
	"banger/internal/inject"
	hostkvm "banger/internal/kvm"
)

// takeOver makes a running QEMU try all that a guest which took it over would, and returns what
// happened.
func takeOver(t *testing.T, m *Machine, attempts []inject.Attempt) (results []string) {
	t.Helper()
	p, err := inject.Attach(m.Process().PID)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range attempts {
		results = append(results, a.Result(p))
	}
	if err := p.Detach(); err != nil {
		t.Fatal(err)
	}
	return results
}

// listeners open one socket of each kind on the host.
func listeners(t *testing.T) (path, abstract string, port netip.AddrPort) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "b") // short, as a socket's address is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path, abstract = filepath.Join(dir, "s"), "@banger-test-"+strconv.Itoa(os.Getpid())
	for _, l := range []struct{ network, address string }{
		{"unix", path}, {"unix", abstract}, {"tcp", "127.0.0.1:0"},
	} {
		s, err := net.Listen(l.network, l.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		if a, ok := s.Addr().(*net.TCPAddr); ok {
			port = a.AddrPort()
		}
	}
	for _, p := range []string{dir, path} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	return path, abstract, port
}

// directories returns what a process has open that leads further.
func directories(t *testing.T, pid int) (all []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
	if err != nil || len(links) < 10 {
		t.Fatalf("it has open %q: %v", links, err)
	}
	for _, link := range links {
		if info, err := os.Stat(link); err == nil && info.IsDir() {
			all = append(all, link)
		}
	}
	return all
}

// takenOver are the confinements under test: that of root's daemon, the same without Landlock, and
// that of an ordinary user's daemon. testdata/takenover.NAME holds what a VMM can do there.
var takenOver = []struct {
	name string
	view bool
	abi  int // of Landlock, that the answers need
}{
	{"root", true, 6}, {"view", true, 0}, {"user", false, 6},
}

// A VMM that its guest has taken over has nothing but what it had open.
func TestTakenOver(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root's daemon has namespaces for QEMU: run the suite as root")
	}
	abi, noLandlock := host.LandlockABI()
	other := newBench(t)
	other.runAsOther(t) // the same user, as with an ordinary user's daemon
	neighbour := other.start(t)
	path, abstract, port := listeners(t)
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	var all []inject.Attempt
	for _, p := range []string{"/", "/etc/passwd", "/proc", "/proc/self/status", hostkvm.Device,
		"/usr/bin/id", "/run", "/tmp", "/sys", "../../.."} {
		all = append(all, inject.Open(p))
	}
	all = slices.Concat(all, inject.Change("/"), inject.Change(filepath.Dir(path)), []inject.Attempt{
		inject.Remove(path),
		inject.Unix(path), inject.Unix(abstract), inject.TCP(port),
		inject.Datagram(netip.MustParseAddrPort("127.0.0.1:53")),
	}, inject.Other("the daemon", os.Getpid()),
		inject.Other("a neighbour", neighbour.Process().PID), inject.Self)
	for _, c := range takenOver {
		t.Run(c.name, func(t *testing.T) {
			if abi < c.abi {
				t.Skipf("this needs Linux 6.12 with Landlock: %v", noLandlock)
			}
			b := newBench(t)
			if c.view && b.confinement.view == nil {
				t.Fatalf("confined by %s only", b.confinement)
			}
			b.runAsOther(t)
			if !c.view {
				b.confinement.view = nil
			}
			if c.abi == 0 {
				b.confinement.landlock = 0
			}
			m := b.start(t)
			got := strings.NewReplacer(abstract, "ABSTRACT", port.String(), "PORT",
				"pid: "+strconv.Itoa(m.Process().PID), "pid: the host's",
				"name: "+hostname+"\n", "name: its own\n",
				// A newer Landlock refuses more.
				"connect to "+path+": EACCES", "connect to SOCKET: done",
				"send to 127.0.0.1:53: EACCES", "send to 127.0.0.1:53: done", path, "SOCKET",
				filepath.Dir(path), "DIR").
				Replace(strings.Join(takeOver(t, m, all), "\n")) + "\n"
			want, err := os.ReadFile(filepath.Join("testdata", "takenover."+c.name))
			if err != nil || got != string(want) {
				t.Errorf("%v\n%s", err, got)
			}
			status, err := os.ReadFile("/proc/" + strconv.Itoa(m.Process().PID) + "/status")
			for _, line := range []string{"NoNewPrivs:\t1", "CapEff:\t0000000000000000"} {
				if !strings.Contains(string(status), line+"\n") {
					t.Errorf("no %q in %s: %v", line, status, err)
				}
			}
			for _, d := range directories(t, m.Process().PID) {
				t.Errorf("it has the directory %s open", d)
			}
			if s, err := m.status(within(t, 10*time.Second)); s != "running" || err != nil {
				t.Errorf("the machine is %s afterwards: %v", s, err)
			}
		})
	}
}

// With vm_uid_base = 0 a VMM is root, and has no capabilities all the same.
func TestRootWithoutCapabilities(t *testing.T) {
	b := newBench(t)
	m := b.start(t)
	status, err := os.ReadFile("/proc/" + strconv.Itoa(m.Process().PID) + "/status")
	for _, set := range []string{"Prm", "Eff", "Inh", "Amb", "Bnd"} {
		line := "Cap" + set + ":\t0000000000000000\n"
		if os.Getuid() != 0 && set == "Bnd" {
			continue // only root may empty it, and no_new_privs does the same
		}
		if !strings.Contains(string(status), line) {
			t.Errorf("no %q in %s: %v", line, status, err)
		}
	}
}

// Some calls end the VMM, or the thread that made them.
func TestTakenOverEnds(t *testing.T) {
	b := newBench(t)
	if os.Getuid() == 0 {
		b.runAsOther(t)
	}
	for _, a := range inject.Last() {
		m := b.start(t)
		if got := takeOver(t, m, []inject.Attempt{a})[0]; got != a.Name+": killed" {
			t.Error(got)
		}
		_ = m.Kill(within(t, 30*time.Second)) // it may have ended
		b.exit(t, m)
	}
}
