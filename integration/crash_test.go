package integration

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
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

// campaign is a daemon that is killed again and again, and all that it has acknowledged.
type campaign struct {
	t     *testing.T
	d     *daemon
	vmm   string
	dir   string // of sources and archives
	port  int    // of the host's loopback; the next ones are used too
	round int

	killed atomic.Bool // the daemon is being killed: commands may fail
	acts   []act
	lives  []*life
	images []*imageLife
	quotas *values

	archives [2]atomic.Pointer[string] // the last whole export: of a VM without a disk, with one
}

// TestCrash kills the daemon at random moments of all kinds of commands. Afterwards all that it
// acknowledged is there, and nothing else: see settle and left.
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
			k := newCampaign(t, c.vmm, c.port)
			for k.round = range c.rounds {
				within := c.within
				if r.IntN(6) == 0 {
					within = max(within, buildTime)
				}
				k.run(r, within)
				if k.round%20 == 19 || k.round == c.rounds-1 {
					k.records()
				}
				if t.Failed() {
					return
				}
			}
			k.report()
		})
	}
}

// buildTime is as long as two builds of small images may take.
const buildTime = 4 * time.Second

func newCampaign(t *testing.T, vmm string, port int) *campaign {
	k := &campaign{t: t, d: testDaemon(t, vmm), vmm: vmm, dir: t.TempDir(), port: port,
		acts: allActs(), quotas: newValues()}
	must(t, openUp(k.dir))
	k.prepareSources()
	for i := range 4 {
		k.lives = append(k.lives, &life{campaign: k, index: i, name: fmt.Sprintf("a%d", i),
			disk: i%2 == 1, values: newValues(), snapshots: map[string]bool{}})
	}
	for i := range 2 {
		k.images = append(k.images, &imageLife{campaign: k, name: fmt.Sprintf("image%d", i)})
	}
	return k
}

// run has commands under way on all VMs and images, kills the daemon, and compares what the next
// one has with what was acknowledged.
func (k *campaign) run(r *rand.Rand, within time.Duration) {
	var wg sync.WaitGroup
	k.killed.Store(false)
	begin := func(step func(*rand.Rand) error) {
		own := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
		wg.Go(func() {
			for !k.killed.Load() {
				if err := step(own); err != nil {
					if !k.killed.Load() {
						k.t.Errorf("round %d: %v", k.round, err)
					}
					return
				}
			}
		})
	}
	for _, l := range k.lives {
		begin(l.step)
	}
	for _, i := range k.images {
		begin(i.step)
	}
	begin(k.setQuota)
	time.Sleep(time.Duration(r.Int64N(int64(within)))) // the random point
	k.killed.Store(true)
	must(k.t, k.d.signal(syscall.SIGKILL))
	wg.Wait()
	if err := k.d.start(); err != nil {
		k.t.Fatalf("round %d: %v", k.round, err)
	}
	k.settle()
	k.left()
}

// settle compares the tree with what was acknowledged, and notes the result of interrupted
// commands.
func (k *campaign) settle() {
	k.t.Helper()
	entries, err := os.ReadDir(k.d.path())
	must(k.t, err)
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Name()] = true
	}
	for _, l := range k.lives {
		l.settle(there)
	}
	for name := range there {
		k.t.Errorf("round %d: %s is there and nobody made it", k.round, name)
	}
	k.quotas.settle(k, "quota/"+quotaUID, k.readQuota)
	entries, err = os.ReadDir(filepath.Join(k.d.mount, "images"))
	must(k.t, err)
	clear(there)
	for _, e := range entries {
		there[e.Name()] = true
	}
	delete(there, "builtin")
	for _, i := range k.images {
		i.settle(there[i.name])
		delete(there, i.name)
	}
	for name := range there {
		k.t.Errorf("round %d: the image %s is there and nobody made it", k.round, name)
	}
}

// report prints how often each kind of command was acknowledged. One that never was in a long
// campaign is a mistake. A real guest's stop may take longer than a round.
func (k *campaign) report() {
	for _, a := range k.acts {
		k.t.Logf("%6d %s", a.done.Load(), a.name)
		if a.done.Load() == 0 && k.round >= 200 && k.vmm == "fake" {
			k.t.Errorf("%s never succeeded", a.name)
		}
	}
	for _, i := range k.images {
		k.t.Logf("%s: %d builds", i.name, i.built)
	}
}
