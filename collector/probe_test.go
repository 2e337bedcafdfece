package collector

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"banger/vmm"
	"banger/vmm/guest"

	"github.com/google/go-cmp/cmp"
)

var updateGolden = flag.Bool("update", false, "write the golden files")

// serve answers each connection with handle and gives the port.
func serve(t *testing.T, handle func(net.Conn)) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[conn] = true
			mu.Unlock()
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer conn.Close()
				handle(conn)
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

func web(t *testing.T, encrypted bool, handler http.HandlerFunc) int {
	t.Helper()
	srv := httptest.NewUnstartedServer(handler)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	if encrypted {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().(*net.TCPAddr).Port
}

func silent(conn net.Conn) { io.Copy(io.Discard, conn) }

func TestProbe(t *testing.T) {
	c, _, _, _ := newTest(t)
	var followed atomic.Bool
	target := web(t, false, func(http.ResponseWriter, *http.Request) { followed.Store(true) })
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	// answer reads a request first, so that the TLS attempt ends at once.
	answer := func(write func(net.Conn)) func(net.Conn) {
		return func(conn net.Conn) {
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err == nil && strings.HasPrefix(line, "GET / HTTP/1.1") {
				write(conn)
			}
		}
	}
	for _, x := range []struct {
		name   string
		port   int
		scheme string
		sure   bool
	}{
		{"http", web(t, false, status(200)), "http", true},
		{"https", web(t, true, status(200)), "https", true},
		{"not found", web(t, false, status(404)), "http", true},
		{"teapot over tls", web(t, true, status(500)), "https", true},
		{"redirect", web(t, false, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, fmt.Sprintf("http://127.0.0.1:%d/", target), http.StatusFound)
		}), "http", true},
		{"endless body", web(t, false, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}), "http", true},
		{"endless headers", serve(t, answer(func(conn net.Conn) {
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\n")
			for i := 0; ; i++ {
				if _, err := fmt.Fprintf(conn, "X-%d: %s\r\n", i, strings.Repeat("x", 1000)); err != nil {
					return
				}
			}
		})), "", true},
		{"echo", serve(t, func(conn net.Conn) { io.Copy(conn, conn) }), "", true},
		{"closes at once", serve(t, func(net.Conn) {}), "", true},
		{"banner", serve(t, func(conn net.Conn) { fmt.Fprint(conn, "SSH-2.0-x\r\n"); silent(conn) }), "", true},
	} {
		t.Run(x.name, func(t *testing.T) {
			scheme, sure := c.probe(context.Background(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(x.port)))
			if scheme != x.scheme || (scheme == "" && x.name != "endless headers" && sure != x.sure) {
				t.Fatalf("%q %v, want %q %v", scheme, sure, x.scheme, x.sure)
			}
		})
	}
	if followed.Load() {
		t.Error("a redirect was followed")
	}
}

func TestProbeOfSilentPortEnds(t *testing.T) {
	c, _, _, _ := newTest(t)
	port := serve(t, silent)
	begun := time.Now()
	scheme, sure := c.probe(context.Background(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)))
	if d := time.Since(begun); scheme != "" || sure || d < 2*probeTimeout-10*time.Millisecond {
		t.Fatalf("%q %v after %v", scheme, sure, d)
	}
}

func TestProbesEndWithTheRequest(t *testing.T) {
	c, _, v, g := newTest(t)
	accepted := make(chan struct{}, 100)
	var ls []guest.Listener
	for range 20 {
		ls = append(ls, guest.Listener{Protocol: "tcp", Port: serve(t, func(conn net.Conn) { accepted <- struct{}{}; silent(conn) })})
	}
	g.listeners = func(context.Context) ([]guest.Listener, error) { return ls, nil }
	v.update(func(s *vmm.Snapshot) { s.Config.Net, s.Address = vmm.NetBridge, netip.MustParseAddr("127.0.0.1") })
	s := v.Snapshot()
	e, _ := c.entry(v)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	ports := &task{kind: portsKind, c: c, e: e, s: s}
	go func() { _, _, err := ports.run(ctx, c.now()); ended <- err }()
	for range probesPerVM { // side by side
		<-accepted
	}
	begun := time.Now()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if d := time.Since(begun); d > 50*time.Millisecond {
		t.Errorf("ended %v after the cancellation", d)
	}
	if len(c.probes) != 0 {
		t.Error("a slot is still taken")
	}
}

func TestPortsProbesAndRemembers(t *testing.T) {
	c, clock, v, g := newTest(t)
	var asked atomic.Int32
	port := web(t, false, func(http.ResponseWriter, *http.Request) { asked.Add(1) })
	started := uint64(100)
	g.listeners = func(context.Context) ([]guest.Listener, error) {
		return []guest.Listener{
			{Protocol: "TCP ", Port: port, Address: "::", PID: 3, Started: started, Process: "httpd"},
			{Protocol: "tcp", Port: port, Address: "0.0.0.0", PID: 3, Started: started, Process: "httpd"},
			{Protocol: "udp", Port: port, Address: "0.0.0.0"},
		}, nil
	}
	read := func() []Port {
		t.Helper()
		p, err := c.Ports(context.Background(), v)
		if err != nil {
			t.Fatal(err)
		}
		return p.Rows
	}
	// Without a leased address nothing is probed, least of all what the guest says that it is bound to.
	v.update(func(s *vmm.Snapshot) { s.Config.Net = vmm.NetUser })
	if rows := read(); len(rows) != 3 || asked.Load() != 0 || rows[0].Endpoint != fmt.Sprintf("0.0.0.0:%d", port) {
		t.Fatalf("%+v", rows)
	}
	v.update(func(s *vmm.Snapshot) {
		s.Run, s.Config.Net, s.Address = 2, vmm.NetBridge, netip.MustParseAddr("127.0.0.1")
	})
	at := fmt.Sprintf("127.0.0.1:%d", port)
	want := []Port{
		{Scheme: "http", Port: port, Endpoint: "http://" + at + "/", Address: "0.0.0.0", PID: 3, Process: "httpd", Command: "httpd"},
		{Scheme: "udp", Port: port, Endpoint: at, Address: "0.0.0.0"},
	}
	if d := cmp.Diff(want, read()); d != "" {
		t.Fatal(d)
	}
	clock.advance(10 * time.Second)
	if d := cmp.Diff(want, read()); d != "" || asked.Load() != 1 {
		t.Fatal(d, asked.Load())
	}
	clock.advance(remember)
	if read(); asked.Load() != 2 {
		t.Fatalf("probed %d times", asked.Load())
	}
	// Another process that got the same pid.
	clock.advance(10 * time.Second)
	started++
	if read(); asked.Load() != 3 {
		t.Fatalf("probed %d times", asked.Load())
	}
}

// TestDoubtfulOutcomesAreTriedLessAndLess has a port that nobody serves although the guest says so.
func TestDoubtfulOutcomesAreTriedLessAndLess(t *testing.T) {
	var m memory
	at, now := netip.MustParseAddr("172.30.0.2"), time.Unix(1790000000, 0)
	ls := []guest.Listener{{Protocol: "tcp", Port: 80, PID: 3}}
	k := keyOf(ls[0])
	m.recall(at, ls, now)
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		m.store(k, at, "", false, now)
		if _, ok := m.recall(at, ls, now.Add(want*time.Second-1))[k]; !ok {
			t.Errorf("not believed for %d s", want)
		}
		now = now.Add(want * time.Second)
		if _, ok := m.recall(at, ls, now)[k]; ok {
			t.Errorf("believed for more than %d s", want)
		}
	}
	m.store(k, at, "http", true, now)
	if s := m.recall(at, ls, now.Add(remember-1))[k]; s != "http" {
		t.Errorf("%q is remembered", s)
	}
	m.store(k, at, "", false, now)
	if m.seen[k].doubt != firstDoubt {
		t.Errorf("after an answer it is doubted for %v", m.seen[k].doubt)
	}
	m.recall(at, nil, now)
	if len(m.seen) != 0 {
		t.Error("who listens no more is remembered")
	}
}

// TestRowsGolden compares the whole table of an unruly guest with testdata/ports.json.
func TestRowsGolden(t *testing.T) {
	ls := canonical([]guest.Listener{
		{Protocol: "udp", Port: 53, Address: "0.0.0.0", PID: 9, Process: "dns", Command: "dns -d"},
		{Protocol: "tcp", Port: 443, Address: "::", PID: 2, Process: "nginx", Command: "nginx: master"},
		{Protocol: "tcp", Port: 443, Address: "0.0.0.0", PID: 2, Process: "nginx", Command: "nginx: master"},
		{Protocol: "tcp", Port: 443, Address: "0.0.0.0", PID: 1, Process: "other", Command: "first"},
		{Protocol: " TCP\n", Port: 80, Address: "0.0.0.0", PID: 3, Process: "httpd", Command: " "},
		{Protocol: "tcp6", Port: 22, Address: "::", PID: 4, Process: "sshd"},
		{Protocol: "tcp", Port: 0, Process: "nothing"},
		{Protocol: "tcp", Port: -5, Process: "nothing"},
		{Protocol: "tcp", Port: 70000, Process: "nothing"},
		{Protocol: "https", Port: 1, Process: "pretends"},
		{Protocol: "tcp", Port: 8080, PID: -1, Process: "esc\x1b[2J", Command: strings.Repeat("é", 3000)},
		{Protocol: "udp", Port: 5353, Address: "224.0.0.251", PID: 7, Process: "b"},
		{Protocol: "udp", Port: 5353, Address: "0.0.0.0", PID: 7, Process: "a"},
	})
	schemes := map[probeKey]string{{80, 3, 0}: "http", {443, 2, 0}: "https", {443, 1, 0}: "https", {53, 9, 0}: "http"}
	table := rows(ls, "172.30.0.2", schemes)
	for i := range table {
		if n := len(table[i].Command); n > maxCommand {
			t.Errorf("command of %d bytes", n)
		} else if n > 100 {
			table[i].Command = fmt.Sprintf("%d bytes", n)
		}
	}
	got, err := json.MarshalIndent(table, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const golden = "testdata/ports.json"
	if *updateGolden {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Error(d)
	}
}

func TestHostileListenersAreBounded(t *testing.T) {
	var ls []guest.Listener
	for i := range 100_000 {
		ls = append(ls, guest.Listener{Protocol: "udp", Port: i%65535 + 1, Process: strings.Repeat("x", 1000)})
	}
	out := canonical(ls)
	if len(out) != maxListeners || len(out[0].Process) != maxProcess || len(out[0].Command) != maxProcess {
		t.Fatal(len(out), len(out[0].Process))
	}
	if len(ls[0].Process) != 1000 {
		t.Fatal("the guest's answer was changed")
	}
}

func FuzzCanonical(f *testing.F) {
	f.Add("tcp", "0.0.0.0", 80, 1, "httpd", "httpd -p 80")
	f.Add(" UDP6", "::", -1, -1, "\xff", "")
	f.Fuzz(func(t *testing.T, protocol, address string, port, pid int, process, command string) {
		ls := canonical([]guest.Listener{{Protocol: protocol, Address: address, Port: port, PID: pid, Process: process, Command: command}})
		for _, p := range rows(ls, "", nil) {
			if p.Port < 1 || p.Port > 65535 || (p.Scheme != "tcp" && p.Scheme != "udp") || len(p.Command) > maxCommand {
				t.Fatalf("%+v", p)
			}
		}
	})
}

// TestEndpointsName has a guest that the host finds by its name, by its address only, and not at all.
func TestEndpointsName(t *testing.T) {
	s := &vmm.Snapshot{Named: true, Record: vmm.Record{Name: "web", State: vmm.Running, Address: netip.MustParseAddr("172.30.0.2"), Config: vmm.Config{Net: vmm.NetBridge}}}
	ls := []guest.Listener{{Protocol: "tcp", Port: 80, Address: "0.0.0.0"}, {Protocol: "udp", Port: 53, Address: "::1"}}
	endpoints := func() (all []string) {
		for _, p := range rows(ls, hostOf(s), map[probeKey]string{{port: 80}: "http"}) {
			all = append(all, p.Endpoint)
		}
		return all
	}
	for _, c := range []struct {
		change func()
		want   []string
	}{
		{func() {}, []string{"http://web.vm:80/", "web.vm:53"}},
		{func() { s.Named = false }, []string{"http://172.30.0.2:80/", "172.30.0.2:53"}},
		{func() { s.Config.Net = vmm.NetUser }, []string{"http://0.0.0.0:80/", "[::1]:53"}},
	} {
		c.change()
		if d := cmp.Diff(c.want, endpoints()); d != "" {
			t.Error(d)
		}
	}
}
