package integration

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	crashRounds = flag.Int("crash.rounds", 0, "how often TestCrash kills the daemon on each driver (default: 60 fake, 10 real)")
	seed        = flag.Uint64("seed", 0, "seed of the random tests (default: from the clock)")
)

// random gives the test's random numbers and prints the seed that repeats them.
func random(t *testing.T) *rand.Rand {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with -seed %d", s)
	return rand.New(rand.NewPCG(s, s))
}

// testDaemon starts a daemon with these lines in its configuration; it is gone, with all it made, when the test ends.
func testDaemon(t testing.TB, vmm string, settings ...string) *daemon {
	t.Helper()
	d, err := newDaemon(t.TempDir(), settings...)
	if err != nil {
		t.Fatal(err)
	}
	if err := openUp(d.state); err != nil {
		t.Fatal(err)
	}
	if err := d.addImage(vmm); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.cleanup)
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *daemon) path(parts ...string) string {
	return filepath.Join(append([]string{d.mount, "vms"}, parts...)...)
}

// write is one write(2), as a shell's echo.
func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text + "\n")
	return err
}

func read(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSuffix(string(b), "\n"), err
}

// life is what is known of one VM: "" is none, else its state. next is what the command under way may lead to.
type life struct {
	name, state, next     string
	port                  int    // of the host's loopback, that it may publish
	published, publishing string // the line of `publish`, and what the command under way may make of it
}

// step does one random command and notes its result; an error leaves next set.
func (l *life) step(d *daemon, r *rand.Rand, vmm, other string) error {
	var err error
	switch {
	case l.state != "" && r.IntN(4) == 0:
		return l.publish(d, r)
	case l.state == "":
		l.next = "stopped"
		err = os.Mkdir(d.path(l.name), 0o755)
		if err == nil {
			l.state = "stopped"
			err = write(d.path(l.name, "vmm"), vmm)
		}
	case l.state == "running":
		l.next = "stopped"
		err = write(d.path(l.name, "state"), []string{"stop", "kill"}[r.IntN(2)])
	default:
		switch r.IntN(3) {
		case 0:
			l.next = ""
			if err = os.Remove(d.path(l.name)); err == nil {
				l.published, l.publishing = "", ""
			}
		case 1:
			// The new name is acknowledged or the old one stays; which is seen afterwards.
			l.next = l.state
			if err = os.Rename(d.path(l.name), d.path(other)); err == nil {
				l.name = other
			}
		default:
			l.next = "running"
			err = write(d.path(l.name, "state"), "start")
		}
	}
	if err == nil {
		l.state = l.next
	}
	return err
}

// publish has the VM's port published or not.
func (l *life) publish(d *daemon, r *rand.Rand) error {
	l.publishing = ""
	if r.IntN(2) == 0 {
		l.publishing = fmt.Sprintf("127.0.0.1:%d:80/tcp", l.port)
	}
	err := write(d.path(l.name, "publish"), l.publishing)
	if err == nil {
		l.published = l.publishing
	}
	return err
}

// settlePorts is settle for what the VM publishes; wired tells that the driver's VMs have a network.
func (l *life) settlePorts(t *testing.T, d *daemon, found string, wired bool, round int) {
	t.Helper()
	published := ""
	if found != "" {
		var err error
		if published, err = read(d.path(found, "publish")); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		if published != l.published && published != l.publishing {
			t.Errorf("round %d: %s publishes %q, acknowledged was %q, under way %q", round, l.name, published, l.published, l.publishing)
		}
	}
	l.published, l.publishing = published, published
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", l.port), 10*time.Second)
	if err == nil {
		c.Close()
	}
	if want := wired && l.state == "running" && published != ""; (err == nil) != want {
		t.Errorf("round %d: %s, %s, publishes %q, and its port says: %v", round, l.name, l.state, published, err)
	}
}

// TestCrash kills the daemon at random points of VMs' lives; what it acknowledged must be so afterwards, and nothing more be there.
func TestCrash(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		vmm    string
		rounds int
		within time.Duration
		port   int
	}{{"fake", 60, 150 * time.Millisecond, 28600}, {"qemu", 10, 4 * time.Second, 28610}} {
		t.Run(c.vmm, func(t *testing.T) {
			if ok, cure := realVMs(); c.vmm == "qemu" && !ok {
				t.Skip(cure)
			}
			if *crashRounds > 0 {
				c.rounds = *crashRounds
			}
			r := random(t)
			d := testDaemon(t, c.vmm)
			lives := make([]*life, 4)
			for i := range lives {
				lives[i] = &life{name: fmt.Sprintf("a%d", i), port: c.port + i}
			}
			for round := range c.rounds {
				var wg sync.WaitGroup
				var killed atomic.Bool
				for i, l := range lives {
					wr := rand.New(rand.NewPCG(r.Uint64(), uint64(i)))
					wg.Add(1)
					go func() {
						defer wg.Done()
						for !killed.Load() {
							other := fmt.Sprintf("%c%d", 'a'+'b'-l.name[0], i)
							if err := l.step(d, wr, c.vmm, other); err != nil {
								if !killed.Load() {
									t.Errorf("round %d: %v", round, err)
								}
								return
							}
						}
					}()
				}
				time.Sleep(time.Duration(r.Int64N(int64(c.within)))) // the random point
				killed.Store(true)
				if err := d.signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				wg.Wait()
				if err := d.start(); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				settle(t, d, c.vmm, round, lives)
				if t.Failed() {
					return
				}
			}
		})
	}
}

// stateAtRest returns a VM's state once a stop that was under way has ended: the next daemon goes on
// with it and keeps to its time limit. It waits for at most 30 s and then returns `stopping`.
func (d *daemon) stateAtRest(name string) (string, error) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		state, err := read(d.path(name, "state"))
		if err != nil || state != "stopping" || time.Now().After(deadline) {
			return state, err
		}
	}
}

// settle compares the tree with what was acknowledged, and takes from it what was not.
func settle(t *testing.T, d *daemon, vmm string, round int, lives []*life) {
	t.Helper()
	entries, err := os.ReadDir(d.path())
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]bool{}
	for _, e := range entries {
		left[e.Name()] = true
	}
	running := 0
	for i, l := range lives {
		found := ""
		for _, name := range []string{fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i)} {
			if !left[name] {
				continue
			}
			if found != "" {
				t.Errorf("round %d: both names of a renamed VM are there: %s and %s", round, found, name)
			}
			found = name
			delete(left, name)
		}
		state := ""
		if found != "" {
			l.name = found
			if state, err = d.stateAtRest(found); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		// A start or stop that was cut off may have failed or ended, an acknowledged state may not have changed.
		cut := l.next != "" && l.next != l.state && (state == "failed" || state == "stopped")
		if state != l.state && state != l.next && !cut {
			t.Errorf("round %d: %s is %q, acknowledged was %q, under way %q", round, l.name, state, l.state, l.next)
		}
		if state == "running" {
			running++
		}
		l.state, l.next = state, state
		l.settlePorts(t, d, found, vmm != "fake", round)
		if state == "stopped" {
			// The mkdir may have been the last that the daemon heard.
			if err := write(d.path(l.name, "vmm"), vmm); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
	}
	for name := range left {
		t.Errorf("round %d: %s is there and nobody made it", round, name)
	}
	d.leftovers(t, round, running)
}

// leftovers reports what no VM of the tree accounts for: directories, processes, taps.
func (d *daemon) leftovers(t *testing.T, round, running int) {
	t.Helper()
	ids := map[string]bool{}
	names, err := filepath.Glob(d.path("*", "id"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		id, err := read(name)
		if err != nil {
			t.Fatal(err)
		}
		ids[id] = true
	}
	dirs, err := os.ReadDir(filepath.Join(d.state, "vms"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if !ids[dir.Name()] {
			t.Errorf("round %d: the directory %s is no VM's", round, dir.Name())
		}
	}
	if n := len(d.machines()); n > running {
		t.Errorf("round %d: %d processes for %d running VMs", round, n, running)
	}
	if n := len(d.taps(t)); n > running {
		t.Errorf("round %d: %d taps for %d running VMs: %v", round, n, running, d.taps(t))
	}
}

// taps gives the links in the daemon's bridge.
func (d *daemon) taps(t *testing.T) []string {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var taps []string
	for _, l := range links {
		if strings.HasPrefix(l.Name, d.bridge+"-") {
			taps = append(taps, l.Name)
		}
	}
	return taps
}
