package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Bounds of what a hostile guest may cost.
const (
	hostileRead  = 5 * time.Second        // a read: 3 s for the agent, 1.5 s for probes
	neighborRead = 500 * time.Millisecond // a read of another VM's files
	hostileGrows = 64 << 20               // the daemon's memory at its peak
	raceTimes    = 4                      // hostileGrows is this many times as much with -race
)

// TestHostile boots a real guest that lies to the daemon in all ways that its test knows.
func TestHostile(t *testing.T) {
	needRealVMs(t)
	if os.Geteuid() != 0 {
		t.Skip("only root has a bridge, through which guests are probed: run the suite as root")
	}
	// Short ages: no capture is older than the guest's change of its mode.
	d := testDaemon(t, "qemu",
		`stats_max_age = "200ms"`, `ports_max_age = "200ms"`, `health_max_age = "200ms"`)
	program := buildStatic(t, "./integration/testdata/hostile")
	d.addImageWith(t, "hostile", 192<<20, map[string][]byte{"hostile": program})
	for _, vm := range []string{"neighbor", "mute", "hostile"} {
		settings := "image hostile\nmemory 192M\ncmdline hostile=" + vm
		if vm == "neighbor" {
			settings = "vmm fake\ncmdline fake.listen=80/tcp/nginx"
		}
		must(t, os.Mkdir(d.path(vm), 0o755))
		must(t, write(d.path(vm, "config"), settings))
		must(t, write(d.path(vm, "state"), "start"))
	}
	h := &hostileVM{d, openTerminal(t, d, "hostile")}
	canary := newCanary(t)
	neighbor := watchNeighbor(t, d)
	must(t, healthy(d, "hostile"))
	mute(t, d)

	honest := misbehaviour{mode: "honest", rows: "http/80", health: "healthy"}
	h.behave(t, &honest)
	before := peak(t, d)
	for i := range misbehaviours {
		m := &misbehaviours[i]
		t.Run(m.mode, func(t *testing.T) {
			began := time.Now()
			h.behave(t, m)
			// An agent that answers again is healthy again.
			h.behave(t, &honest)
			t.Logf("%.1f s, the daemon at its peak %d MiB above its start",
				time.Since(began).Seconds(), (peak(t, d)-before)>>20)
		})
	}

	t.Run("files", func(t *testing.T) {
		hostileFiles(t, d)
		t.Logf("the daemon at its peak %d MiB above its start", (peak(t, d)-before)>>20)
	})

	if n := canary.connections(); n != 0 {
		t.Errorf("%d connections were made to the host", n)
	}
	canary.check(t, d)
	grows := int64(hostileGrows)
	if raceEnabled {
		grows *= raceTimes
	}
	if grown := peak(t, d) - before; grown > grows {
		t.Errorf("the daemon has grown by %d MiB", grown>>20)
	}
	if slowest := neighbor(); slowest > neighborRead {
		t.Errorf("a read of another VM took %v", slowest)
	} else {
		t.Logf("the slowest read of another VM took %v", slowest)
	}
	for _, file := range []string{"vms/hostile/events", "vms/hostile/log", "vms/hostile/error",
		"list", "events", "metrics"} {
		text, err := read(filepath.Join(d.mount, file))
		if err != nil {
			t.Error(err)
		}
		checkPrintable(t, file, text)
	}
	// The VMs still obey.
	if needed := took(func() {
		for _, vm := range []string{"hostile", "mute"} {
			if err := write(d.path(vm, "state"), "kill"); err != nil {
				t.Error(err)
			}
		}
	}); needed > hostileRead {
		t.Errorf("killing took %v", needed)
	}
}

// mute checks the files of the VM whose agent never sends a byte.
func mute(t *testing.T, d *daemon) {
	s := look(d, "mute")
	if s.slowest > hostileRead {
		t.Errorf("a read of a mute guest took %v", s.slowest)
	}
	if !errors.Is(s.portsErr, syscall.ETIMEDOUT) || s.statsErr != nil ||
		s.health != "starting" || strings.Contains(s.stats, "guest_") {
		t.Errorf("the mute guest has ports %v, stats %q (%v) and is %s",
			s.portsErr, s.stats, s.statsErr, s.health)
	}
}

// hostileVM is the VM that misbehaves, and its console.
type hostileVM struct {
	d       *daemon
	console *terminal
}

// behave puts the guest into a mode and waits until its files show it.
func (h *hostileVM) behave(t *testing.T, m *misbehaviour) {
	t.Helper()
	must(t, write(h.d.path("hostile", "console"), m.mode))
	for end := time.Now().Add(40 * time.Second); ; {
		console := h.console.String()
		i := strings.LastIndex(console, "mode ")
		if i >= 0 && strings.HasPrefix(console[i:], "mode "+m.mode+"\n") {
			s := look(h.d, "hostile")
			if s.slowest > hostileRead {
				t.Errorf("mode %s: a read took %v", m.mode, s.slowest)
			}
			for name, text := range map[string]string{
				"ports": s.ports, "ports.json": s.portsJSON, "stats": s.stats, "health": s.health,
			} {
				checkPrintable(t, name, text)
			}
			wrong := m.wrong(s)
			if wrong == "" {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("mode %s: %s", m.mode, wrong)
			}
		}
		if time.Now().After(end) {
			t.Fatalf("the guest does not enter the mode %s: %q",
				m.mode, console[max(0, len(console)-200):])
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// peak returns the most memory that the daemon has had.
func peak(t *testing.T, d *daemon) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	must(t, err)
	hwm := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(b)
	if hwm == nil {
		t.Fatalf("no VmHWM in %s", b)
	}
	kB, err := strconv.ParseInt(string(hwm[1]), 10, 64)
	must(t, err)
	return kB << 10
}
