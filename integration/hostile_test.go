package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode"
)

// Bounds of what a hostile guest may cost.
const (
	hostileRead  = 5 * time.Second        // a read of its own files: 3 s for the agent, 1.5 s for probes after a slow answer
	neighborRead = 500 * time.Millisecond // a read of another VM's
	hostileGrows = 64 << 20               // the daemon's memory at its peak; with -race it is several times as much
	raceTimes    = 4
)

// elsewherePort is the first of the eight ports on which the test listens on the host's side; see testdata/hostile.
const elsewherePort = 8090

// seen is what one look at a VM's files gave.
type seen struct {
	ports, portsJSON, stats, statsJSON, health string
	portsErr, portsJSONErr, statsErr           error
	slowest                                    time.Duration
}

// look reads the files side by side.
func look(d *daemon, vm string) seen {
	var s seen
	var healthErr, statsJSONErr error
	var wg sync.WaitGroup
	var mu sync.Mutex // guards s.slowest
	for _, f := range []struct {
		name string
		text *string
		err  *error
	}{
		{"ports", &s.ports, &s.portsErr}, {"ports.json", &s.portsJSON, &s.portsJSONErr},
		{"stats", &s.stats, &s.statsErr}, {"stats.json", &s.statsJSON, &statsJSONErr}, {"health", &s.health, &healthErr},
	} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			needed := took(func() { *f.text, *f.err = read(d.path(vm, f.name)) })
			mu.Lock()
			s.slowest = max(s.slowest, needed)
			mu.Unlock()
		}()
	}
	wg.Wait()
	s.statsErr = errors.Join(s.statsErr, statsJSONErr, healthErr) // neither may fail, whatever a guest says
	return s
}

// misbehaviour is a mode of the guest's, and what its files show then.
type misbehaviour struct {
	mode   string
	ports  []error // errnos that the read may give; none: it succeeds
	rows   string  // if it succeeds: the ports of its rows as scheme/port, in order
	silent bool    // the agent's figures are missing in stats
	health string  // regular expression
}

var misbehaviours = []misbehaviour{
	{mode: "servers", rows: "http/80 http/81 http/84 https/443 tcp/82 tcp/83 tcp/85 tcp/444 tcp/445", health: "healthy"},
	{mode: "elsewhere", rows: "http/8090 tcp/8091 tcp/8092 tcp/8093 tcp/8094 tcp/8095 tcp/8096 tcp/8097", health: "healthy"},
	{mode: "text", rows: "udp/1 udp/2 udp/3 udp/4", health: "healthy"},
	{mode: "numbers", rows: "udp/1 udp/65535", health: "healthy"},
	{mode: "many", rows: manyRows(), health: "healthy"},
	{mode: "overflow", ports: []error{syscall.EIO}, silent: true, health: "unhealthy cannot .*"},
	{mode: "nested", ports: []error{syscall.EIO}, silent: true, health: "unhealthy cannot .*"},
	{mode: "broken", ports: []error{syscall.EIO}, silent: true, health: "unhealthy cannot .*"},
	{mode: "curse", ports: []error{syscall.EIO}, silent: true, health: `unhealthy cannot .*\\x1b\[31mred.*`},
	{mode: "endless", ports: []error{syscall.EIO}, silent: true, health: "unhealthy cannot .*"},
	{mode: "babble", ports: []error{syscall.EIO}, silent: true, health: "unhealthy cannot .*"},
	{mode: "noise", ports: []error{syscall.EIO, syscall.ETIMEDOUT}, silent: true, health: "unhealthy .*"},
	{mode: "streams", ports: []error{syscall.EIO}, silent: true, health: "unhealthy cannot .*"},
	{mode: "pings", ports: []error{syscall.EIO, syscall.ETIMEDOUT}, silent: true, health: "unhealthy .*"},
	{mode: "silent", ports: []error{syscall.ETIMEDOUT}, silent: true, health: "unhealthy .*in time"},
	{mode: "drip", ports: []error{syscall.ETIMEDOUT}, silent: true, health: "unhealthy .*in time"},
	{mode: "crawl", ports: []error{syscall.ETIMEDOUT}, silent: true, health: "unhealthy .*in time"},
}

// manyRows are the first 4,096 of the 100,000.
func manyRows() string {
	rows := make([]string, 4096)
	for i := range rows {
		rows[i] = fmt.Sprintf("tcp/%d", 1024+i)
	}
	return strings.Join(rows, " ")
}

// wrong says in what s is not what it should be, "" if in nothing.
func (m *misbehaviour) wrong(s seen) string {
	for _, f := range []struct {
		name string
		err  error
	}{{"ports", s.portsErr}, {"ports.json", s.portsJSONErr}} {
		fits := len(m.ports) == 0 && f.err == nil
		for _, errno := range m.ports {
			fits = fits || errors.Is(f.err, errno)
		}
		if !fits {
			return fmt.Sprintf("%s gives %v, not %v", f.name, f.err, m.ports)
		}
	}
	if len(m.ports) == 0 {
		if rows := rowsOf(s.ports); rows != m.rows {
			return "ports has the rows " + rows
		}
		if !regexp.MustCompile("^" + m.health + "$").MatchString(s.health) {
			return "health is " + s.health
		}
		var twin []struct {
			Scheme string
			Port   int
		}
		err := json.Unmarshal([]byte(s.portsJSON), &twin)
		rows := make([]string, len(twin))
		for i, p := range twin {
			rows[i] = fmt.Sprintf("%s/%d", p.Scheme, p.Port)
		}
		if err != nil || strings.Join(rows, " ") != m.rows {
			return fmt.Sprintf("ports.json has the rows %s (%v)", rows, err)
		}
	}
	if m.silent == strings.Contains(s.stats, "\nguest_") {
		return "stats is " + s.stats
	}
	if s.statsErr != nil {
		return "stats, stats.json or health fail: " + s.statsErr.Error()
	}
	if !json.Valid([]byte(s.statsJSON)) {
		return "stats.json is " + s.statsJSON
	}
	if !regexp.MustCompile("^" + m.health + "$").MatchString(s.health) {
		return "health is " + s.health
	}
	return ""
}

// rowsOf gives the first two columns of ports.
func rowsOf(ports string) string {
	var rows []string
	for _, row := range strings.Split(ports, "\n") {
		if f := strings.Fields(row); len(f) >= 2 {
			rows = append(rows, f[0]+"/"+f[1])
		} else {
			rows = append(rows, strconv.Quote(row))
		}
	}
	return strings.Join(rows, " ")
}

// TestHostile has a real guest lie to the daemon in every way it can think of.
func TestHostile(t *testing.T) {
	if ok, cure := realVMs(); !ok {
		t.Skip(cure)
	}
	if os.Geteuid() != 0 {
		t.Skip("only root has a bridge, through which guests are probed: run the suite as root")
	}
	// Short ages: what is read was said after the guest had changed its mode.
	d := testDaemon(t, "qemu", `stats_max_age = "200ms"`, `ports_max_age = "200ms"`, `health_max_age = "200ms"`)
	d.addImageWith(t, "hostile", 192<<20, map[string][]byte{"hostile": buildStatic(t, "./integration/testdata/hostile")})
	for _, vm := range []string{"neighbor", "mute", "hostile"} {
		settings := "image hostile\nmemory 192M\ncmdline hostile=" + vm
		if vm == "neighbor" {
			settings = "vmm fake\ncmdline fake.listen=80/tcp/nginx"
		}
		if err := errors.Join(os.Mkdir(d.path(vm), 0o755), write(d.path(vm, "config"), settings), write(d.path(vm, "state"), "start")); err != nil {
			t.Fatal(err)
		}
	}
	h := &hostileVM{d, openTerminal(t, d, "hostile")}
	canary := newCanary(t)
	neighbor := watchNeighbor(t, d)
	if _, err := read(d.path("hostile", "wait", "healthy")); err != nil {
		t.Fatal(err)
	}
	mute(t, d)

	honest := misbehaviour{mode: "honest", rows: "http/80", health: "healthy"}
	h.behave(t, &honest)
	before := peak(t, d)
	for i := range misbehaviours {
		m := &misbehaviours[i]
		t.Run(m.mode, func(t *testing.T) {
			began := time.Now()
			h.behave(t, m)
			// The agent that answers again is believed again.
			h.behave(t, &honest)
			t.Logf("%.1f s, the daemon at its peak %d MiB above its start", time.Since(began).Seconds(), (peak(t, d)-before)>>20)
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
	for _, file := range []string{d.path("hostile", "events"), d.path("hostile", "log"), d.path("hostile", "error"), filepath.Join(d.mount, "list"), filepath.Join(d.mount, "events"), filepath.Join(d.mount, "metrics")} {
		text, err := read(file)
		if err != nil {
			t.Error(err)
		}
		checkPrintable(t, file, text)
	}
	// It is obeyed all the same.
	if needed := took(func() {
		if err := errors.Join(write(d.path("hostile", "state"), "kill"), write(d.path("mute", "state"), "kill")); err != nil {
			t.Error(err)
		}
	}); needed > hostileRead {
		t.Errorf("killing took %v", needed)
	}
}

// mute looks at the VM whose agent never said a word.
func mute(t *testing.T, d *daemon) {
	s := look(d, "mute")
	if s.slowest > hostileRead {
		t.Errorf("a read of a guest without a word took %v", s.slowest)
	}
	if !errors.Is(s.portsErr, syscall.ETIMEDOUT) || s.statsErr != nil || s.health != "starting" || strings.Contains(s.stats, "guest_") {
		t.Errorf("the guest without a word has ports %v, stats %q (%v) and is %s", s.portsErr, s.stats, s.statsErr, s.health)
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
	if err := write(h.d.path("hostile", "console"), m.mode); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(40 * time.Second); ; {
		console := h.console.String()
		if i := strings.LastIndex(console, "mode "); i >= 0 && strings.HasPrefix(console[i:], "mode "+m.mode+"\n") {
			s := look(h.d, "hostile")
			if s.slowest > hostileRead {
				t.Errorf("mode %s: a read took %v", m.mode, s.slowest)
			}
			for name, text := range map[string]string{"ports": s.ports, "ports.json": s.portsJSON, "stats": s.stats, "health": s.health} {
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
			t.Fatalf("the guest does not take the mode %s: %q", m.mode, console[max(0, len(console)-200):])
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// checkPrintable finds what would reach a terminal as more than characters.
func checkPrintable(t *testing.T, name, text string) {
	t.Helper()
	for i, r := range text {
		if r != '\n' && !unicode.IsPrint(r) && !strings.HasSuffix(name, ".json") || r < ' ' && r != '\n' {
			t.Errorf("%s has the character %q after %q", name, r, text[max(0, i-100):i])
			return
		}
	}
}

// peak gives the most memory that the daemon has had.
func peak(t *testing.T, d *daemon) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	hwm := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(b)
	if hwm == nil {
		t.Fatalf("no VmHWM in %s", b)
	}
	kB, err := strconv.ParseInt(string(hwm[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kB << 10
}

// watchNeighbor reads a VM's files again and again, until it is asked for the longest time that one took.
func watchNeighbor(t *testing.T, d *daemon) func() time.Duration {
	stop, stopped := make(chan struct{}), make(chan time.Duration, 1)
	go func() {
		var slowest time.Duration
		defer func() { stopped <- slowest }()
		for {
			for _, name := range []string{"state", "stats", "ports", "health", "config"} {
				slowest = max(slowest, took(func() {
					if _, err := read(d.path("neighbor", name)); err != nil {
						t.Errorf("meanwhile: %v", err)
					}
				}))
			}
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	result := sync.OnceValue(func() time.Duration {
		close(stop)
		return <-stopped
	})
	t.Cleanup(func() { result() })
	return result
}

// canary listens on all addresses of the host, the bridge's among them, where a guest would lure the daemon to.
type canary struct{ seen atomic.Int32 }

func newCanary(t *testing.T) *canary {
	c := new(canary)
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for port := elsewherePort; port < elsewherePort+8; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				conn, err := l.Accept()
				if err != nil {
					return // closed
				}
				c.seen.Add(1)
				conn.Close()
			}
		}()
	}
	return c
}

func (c *canary) connections() int { return int(c.seen.Load()) }

// check proves that the canary would have seen a connection, through the loopback and through the bridge.
func (c *canary) check(t *testing.T, d *daemon) {
	t.Helper()
	bridge, err := net.InterfaceByName(d.bridge)
	if err != nil {
		t.Fatal(err)
	}
	addresses, err := bridge.Addrs()
	if err != nil || len(addresses) == 0 {
		t.Fatalf("the bridge has no address: %v", err)
	}
	gateway := netip.MustParsePrefix(addresses[0].String()).Addr()
	for i, address := range []string{"127.0.0.1", gateway.String()} {
		conn, err := net.Dial("tcp", net.JoinHostPort(address, strconv.Itoa(elsewherePort+1)))
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		for end := time.Now().Add(5 * time.Second); c.connections() <= i; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the listener does not see a connection to %s", address)
			}
		}
	}
}
