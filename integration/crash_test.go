package integration

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	crashRounds = flag.Int("crash.rounds", 0,
		"kills of the daemon in TestCrash, for each driver (default: 60 fake, 10 real)")
	seed = flag.Uint64("seed", 0, "seed of the random tests (default: from the clock)")
)

// life is the acknowledged state of one VM, "" if there is none. The command under way may change
// state to next, and published to publishing, both lines of `publish`.
type life struct {
	name, state, next     string
	port                  int // of the host's loopback
	published, publishing string
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

// settlePorts compares a VM's published port. The driver's VMs have a network if wired is true.
func (l *life) settlePorts(t *testing.T, d *daemon, found string, wired bool, round int) {
	t.Helper()
	published := ""
	if found != "" {
		var err error
		if published, err = read(d.path(found, "publish")); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		if published != l.published && published != l.publishing {
			t.Errorf("round %d: %s publishes %q, acknowledged was %q, under way %q",
				round, l.name, published, l.published, l.publishing)
		}
	}
	l.published, l.publishing = published, published
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", l.port), 10*time.Second)
	if err == nil {
		c.Close()
	}
	if want := wired && l.state == "running" && published != ""; (err == nil) != want {
		t.Errorf("round %d: %s, %s, publishes %q, and its port returns: %v",
			round, l.name, l.state, published, err)
	}
}

// TestCrash kills the daemon at random moments of VMs' lives. Afterwards all that it acknowledged
// is there, and nothing else.
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
				must(t, d.signal(syscall.SIGKILL))
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

// stateAtRest returns a VM's state after the end of a stop that was under way. The next daemon goes
// on with that stop. It waits for at most 30 s and then returns `stopping`.
func (d *daemon) stateAtRest(name string) (string, error) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		state, err := read(d.path(name, "state"))
		if err != nil || state != "stopping" || time.Now().After(deadline) {
			return state, err
		}
	}
}

// settle compares the tree with the acknowledged states, and notes the result of interrupted
// commands.
func settle(t *testing.T, d *daemon, vmm string, round int, lives []*life) {
	t.Helper()
	entries, err := os.ReadDir(d.path())
	must(t, err)
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
				t.Errorf("round %d: a renamed VM has both names: %s and %s", round, found, name)
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
		// An interrupted start or stop may have failed or ended. An acknowledged state stays.
		cut := l.next != "" && l.next != l.state && (state == "failed" || state == "stopped")
		if state != l.state && state != l.next && !cut {
			t.Errorf("round %d: %s is %q, acknowledged was %q, under way %q",
				round, l.name, state, l.state, l.next)
		}
		if state == "running" {
			running++
		}
		l.state, l.next = state, state
		l.settlePorts(t, d, found, vmm != "fake", round)
		if state == "stopped" {
			// The daemon may have been killed between the mkdir and the write of `vmm`.
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
