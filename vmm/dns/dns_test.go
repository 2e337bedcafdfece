package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// vms are Names that never change.
type vms map[string][]netip.Addr

func (v vms) Addresses(name string) []netip.Addr { return v[name] }

func (v vms) NameOf(a netip.Addr) string {
	for name, addrs := range v {
		for _, has := range addrs {
			if has == a {
				return name
			}
		}
	}
	return ""
}

var some = vms{
	"web": {netip.MustParseAddr("172.30.0.2"), netip.MustParseAddr("fd12:3456:789a::2")},
	"db":  {netip.MustParseAddr("172.30.1.255")},
}

func TestZone(t *testing.T) {
	z := zone{names: some, canary: func(l string) netip.Addr {
		if l == "_canary" {
			return netip.MustParseAddr("172.30.0.1")
		}
		return netip.Addr{}
	}, prefixes: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/16"), netip.MustParsePrefix("fd12:3456:789a::/64"), netip.MustParsePrefix("10.8.16.0/20")}}
	const web6 = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa."
	const apex6 = "0.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa."
	for _, c := range []struct {
		name  string
		qtype uint16
		want  string // the zone, whether the name exists, and the records' data; empty: it is none of ours
	}{
		{"web.vm.", dns.TypeA, "vm. true 172.30.0.2"},
		{"web.vm.", dns.TypeAAAA, "vm. true fd12:3456:789a::2"},
		{"web.vm.", dns.TypeANY, "vm. true 172.30.0.2 fd12:3456:789a::2"},
		{"web.vm.", dns.TypeMX, "vm. true"},
		{"db.vm.", dns.TypeAAAA, "vm. true"},
		{"none.vm.", dns.TypeA, "vm. false"},
		{"a.web.vm.", dns.TypeA, "vm. false"},
		{"localhost.vm.", dns.TypeA, "vm. false"},
		{"a.localhost.vm.", dns.TypeA, "vm. false"},
		{"localhost.", dns.TypeA, "localhost. true 127.0.0.1"},
		{"localhost.", dns.TypeAAAA, "localhost. true ::1"},
		{"localhost.", dns.TypeANY, "localhost. true 127.0.0.1 ::1"},
		{"localhost.", dns.TypeMX, "localhost. true"},
		{"a.b.localhost.", dns.TypeA, "localhost. true 127.0.0.1"},
		{"localhost.example.", dns.TypeA, ""},
		{"a.invalid.", dns.TypeA, "invalid. false"},
		{"a.onion.", dns.TypeA, "onion. false"},
		{"_canary.vm.", dns.TypeA, "vm. true 172.30.0.1"},
		{"vm.", dns.TypeA, "vm. true"},
		{"vm.", dns.TypeSOA, "vm. true vm. nobody.invalid. 1 3600 1200 604800 5"},
		{"vm.", dns.TypeNS, "vm. true vm."},
		{`x\.vm.`, dns.TypeA, ""}, // one label
		{"web.vm.example.", dns.TypeA, ""},
		{"avm.", dns.TypeA, ""},
		{".", dns.TypeNS, ""},

		{"2.0.30.172.in-addr.arpa.", dns.TypePTR, "30.172.in-addr.arpa. true web.vm."},
		{"255.1.30.172.in-addr.arpa.", dns.TypePTR, "30.172.in-addr.arpa. true db.vm."},
		{"2.0.30.172.in-addr.arpa.", dns.TypeA, "30.172.in-addr.arpa. true"},
		{"9.9.30.172.in-addr.arpa.", dns.TypePTR, "30.172.in-addr.arpa. false"},
		{"0.30.172.in-addr.arpa.", dns.TypePTR, "30.172.in-addr.arpa. true"},
		{"30.172.in-addr.arpa.", dns.TypeNS, "30.172.in-addr.arpa. true 30.172.in-addr.arpa."},
		{"x.30.172.in-addr.arpa.", dns.TypePTR, "30.172.in-addr.arpa. false"},
		{"256.0.30.172.in-addr.arpa.", dns.TypePTR, "30.172.in-addr.arpa. false"},
		{"02.0.30.172.in-addr.arpa.", dns.TypePTR, "30.172.in-addr.arpa. false"},
		{"1.2.0.30.172.in-addr.arpa.", dns.TypePTR, "30.172.in-addr.arpa. false"},
		{"172.in-addr.arpa.", dns.TypeNS, ""},
		{"2.0.31.172.in-addr.arpa.", dns.TypePTR, ""},
		{"in-addr.arpa.", dns.TypeNS, ""},
		{"arpa.", dns.TypeNS, ""},
		{"7.20.8.10.in-addr.arpa.", dns.TypePTR, "20.8.10.in-addr.arpa. false"},
		{"20.8.10.in-addr.arpa.", dns.TypeNS, "20.8.10.in-addr.arpa. true 20.8.10.in-addr.arpa."},
		{"7.32.8.10.in-addr.arpa.", dns.TypePTR, ""},
		{"8.10.in-addr.arpa.", dns.TypeNS, ""},
		{web6, dns.TypePTR, apex6 + " true web.vm."},
		{"3" + web6[1:], dns.TypePTR, apex6 + " false"},
		{apex6, dns.TypeMX, apex6 + " true"},
		{apex6[2:], dns.TypeMX, ""},
	} {
		a, ok := z.lookup(dns.Question{Name: c.name, Qtype: c.qtype, Qclass: dns.ClassINET})
		got := ""
		if ok {
			got = fmt.Sprint(a.apex, " ", a.exists)
			for _, rr := range a.rrs {
				if h := rr.Header(); h.Name != c.name || h.Ttl != ttl || h.Class != dns.ClassINET {
					t.Errorf("%s: %v", c.name, rr)
				}
				got += " " + strings.TrimPrefix(rr.String(), rr.Header().String())
			}
		}
		if got != c.want {
			t.Errorf("%s %s: %q, not %q", c.name, dns.TypeToString[c.qtype], got, c.want)
		}
	}
}

func TestReverseZones(t *testing.T) {
	for prefix, want := range map[string]string{
		"172.30.0.0/16":         "30.172.in-addr.arpa.",
		"10.0.0.0/8":            "10.in-addr.arpa.",
		"10.8.12.0/22":          "12.8.10.in-addr.arpa. 13.8.10.in-addr.arpa. 14.8.10.in-addr.arpa. 15.8.10.in-addr.arpa.",
		"192.168.7.252/30":      "252.7.168.192.in-addr.arpa. 253.7.168.192.in-addr.arpa. 254.7.168.192.in-addr.arpa. 255.7.168.192.in-addr.arpa.",
		"fd12:3456:789a::/64":   "0.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.",
		"fd12:3456:789a::/47":   "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa. b.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.",
		"fd12:3456:789a:8::/61": "8.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.",
	} {
		got := strings.Join(reverseZones(netip.MustParsePrefix(prefix)), " ")
		if strings.HasSuffix(prefix, "/61") {
			got = strings.Fields(got)[0] // of eight
		}
		if got != want {
			t.Errorf("%s: %s", prefix, got)
		}
	}
}

// upstream is a resolver of the host's. Its port is that of all resolvers of the test.
type upstream struct {
	port  uint16
	asked atomic.Int32
}

// newUpstream answers with h until the test ends, on UDP and TCP.
func newUpstream(t *testing.T, h func(w dns.ResponseWriter, q *dns.Msg)) *upstream {
	t.Helper()
	u := &upstream{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	u.port = l.Addr().(*net.TCPAddr).AddrPort().Port()
	counted := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		u.asked.Add(1)
		h(w, q)
	})
	for _, s := range []*dns.Server{{Listener: l, Handler: counted}, {PacketConn: p, Handler: counted}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		var ended sync.WaitGroup
		ended.Add(1)
		go func() {
			defer ended.Done()
			if err := s.ActivateAndServe(); err != nil {
				t.Error(err)
			}
		}()
		<-started
		t.Cleanup(func() {
			if err := s.Shutdown(); err != nil {
				t.Error(err)
			}
			ended.Wait()
		})
	}
	return u
}

// reply answers q with the records.
func reply(w dns.ResponseWriter, q *dns.Msg, rrs ...string) {
	m := new(dns.Msg)
	m.SetReply(q)
	for _, text := range rrs {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	_ = w.WriteMsg(m) // who asked may have gone
}

// newServer serves on 127.77.0.1 with that resolv.conf, whose resolvers have the port.
func newServer(t *testing.T, resolvConf string, port uint16) *Server {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte(resolvConf), 0o644); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	s, err := Listen(Options{Gateways: []netip.Prefix{netip.MustParsePrefix("127.77.0.1/24")}, Port: freePort(t), ResolvConf: path, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if port != 0 {
		s.forward.conf.port = port
	}
	s.Serve(some)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		waitFor(t, "the server's goroutines end", func() bool { return runtime.NumGoroutine() <= before })
		if len(s.asking) != 0 || len(s.conns) != 0 || len(s.forward.long) != 0 {
			t.Errorf("still taken: %d queries, %d connections, %d long replies", len(s.asking), len(s.conns), len(s.forward.long))
		}
	})
	return s
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// freePort finds one that is free for UDP and TCP on 127.77.0.1.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.77.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func waitFor(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so after 10 s: %s", what)
		}
	}
}

// ask asks over "udp" or "tcp" what change makes of a plain query.
func ask(t *testing.T, s *Server, network, name string, qtype uint16, change func(*dns.Msg)) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	if change != nil {
		change(m)
	}
	c := dns.Client{Net: network, Timeout: 8 * time.Second, UDPSize: dns.MaxMsgSize}
	r, _, err := c.Exchange(m, s.own[0].String())
	if err != nil {
		t.Fatalf("%s %s: %v", network, name, err)
	}
	return r
}

func TestNames(t *testing.T) {
	s := newServer(t, "", 1)
	for _, network := range []string{"udp", "tcp"} {
		r := ask(t, s, network, "wEb.Vm.", dns.TypeA, nil)
		if r.Rcode != 0 || !r.Authoritative || !r.RecursionAvailable || len(r.Answer) != 1 || r.Answer[0].String() != "wEb.Vm.\t5\tIN\tA\t172.30.0.2" {
			t.Error(network, r)
		}
		// RFC 2308: what is not there comes with the zone's SOA, whose ttl and minimum say how long to believe it.
		for name, rcode := range map[string]int{"none.vm.": dns.RcodeNameError, "db.vm.": 0} {
			r := ask(t, s, network, name, dns.TypeAAAA, nil)
			if r.Rcode != rcode || len(r.Answer) != 0 || len(r.Ns) != 1 || r.Ns[0].Header().Ttl != ttl || r.Ns[0].(*dns.SOA).Minttl != ttl {
				t.Error(network, name, r)
			}
		}
	}
	for name, c := range map[string]struct {
		change func(*dns.Msg)
		rcode  int
	}{
		"a transfer":        {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }, dns.RcodeRefused},
		"another class":     {func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		"an update":         {func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		"EDNS of to-morrow": {func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
		"two questions":     {func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError},
		"none":              {func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError},
	} {
		if r := ask(t, s, "udp", "web.vm.", dns.TypeA, c.change); r.Rcode != c.rcode {
			t.Errorf("%s: %s", name, dns.RcodeToString[r.Rcode])
		}
	}
	if r := ask(t, s, "udp", "web.vm.", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(4096, true) }); r.IsEdns0() == nil || !r.IsEdns0().Do() || r.IsEdns0().UDPSize() != ednsSize {
		t.Error(r)
	}
}

// TestForward asks for what a resolver of the host's knows, through what lies before the right reply.
func TestForward(t *testing.T) {
	var got atomic.Pointer[dns.Msg]
	u := newUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		got.Store(q)
		if w.RemoteAddr().Network() == "udp" {
			_, _ = w.Write([]byte("junk"))
			other := q.Copy()
			other.Id++
			reply(w, other, "example.org. 60 IN A 192.0.2.66")
			other = q.Copy()
			other.Question[0].Name = "example.net."
			reply(w, other, "example.net. 60 IN A 192.0.2.66")
		}
		reply(w, q, "example.org. 60 IN A 192.0.2.1")
	})
	// It listens on 127.0.0.1 only: the first refuses, the second is the server itself if it had this port.
	s := newServer(t, "nameserver 127.77.0.9\nnameserver 127.0.0.1\n", u.port)
	r := ask(t, s, "udp", "Example.org.", dns.TypeA, func(m *dns.Msg) {
		m.SetEdns0(1232, true)
		m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"})
		m.CheckingDisabled = true
	})
	if r.Rcode != 0 || r.Authoritative || len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "192.0.2.1" || r.Question[0].Name != "Example.org." || r.IsEdns0() == nil {
		t.Error(r)
	}
	if q := got.Load(); q == nil || !q.RecursionDesired || !q.CheckingDisabled || q.IsEdns0() == nil || !q.IsEdns0().Do() || len(q.IsEdns0().Option) != 0 {
		t.Error("the resolver was asked", q)
	}
	if r := ask(t, s, "tcp", "example.org.", dns.TypeA, nil); len(r.Answer) != 1 || r.IsEdns0() != nil {
		t.Error(r)
	}
	// Names of the zone go nowhere, and neither do those of the subnet.
	before := u.asked.Load()
	for _, name := range []string{"none.vm.", "x.y.vm.", "VM.", "9.0.77.127.in-addr.arpa."} {
		ask(t, s, "udp", name, dns.TypePTR, nil)
	}
	if n := u.asked.Load() - before; n != 0 {
		t.Errorf("%d queries for our own names were forwarded", n)
	}
}

// TestForwardTries asks the next resolver when one fails, and begins with the one that answered last.
func TestForwardTries(t *testing.T) {
	var rcode atomic.Int32
	u := newUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetRcode(q, int(rcode.Load()))
		_ = w.WriteMsg(m)
	})
	s := newServer(t, "nameserver 127.77.0.9\nnameserver 127.0.0.1\n", u.port)
	for _, want := range []int{dns.RcodeNameError, dns.RcodeServerFailure, dns.RcodeRefused} {
		rcode.Store(int32(want))
		if r := ask(t, s, "udp", "example.org.", dns.TypeA, nil); r.Rcode != want {
			t.Errorf("%s, not %s", dns.RcodeToString[r.Rcode], dns.RcodeToString[want])
		}
	}
	if n := s.forward.good.Load(); n != 1 {
		t.Errorf("resolver %d is asked first", n)
	}
	// None answers.
	if err := os.WriteFile(s.o.ResolvConf, []byte("nameserver 127.77.0.9\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the new resolv.conf is read", func() bool { return len(s.forward.conf.resolvers()) == 1 })
	if r := ask(t, s, "udp", "example.org.", dns.TypeA, nil); r.Rcode != dns.RcodeServerFailure {
		t.Error(r)
	}
}

// TestForwardNotToItself has a host whose only resolver is the server itself.
func TestForwardNotToItself(t *testing.T) {
	s := newServer(t, "nameserver 127.77.0.1\n", 0)
	s.forward.conf.mu.Lock()
	s.forward.conf.port = s.own[0].Port()
	s.forward.conf.mu.Unlock()
	began := time.Now()
	if r := ask(t, s, "udp", "example.org.", dns.TypeA, nil); r.Rcode != dns.RcodeServerFailure || time.Since(began) > forwardTime/2 {
		t.Error(time.Since(began), r)
	}
}

// TestHugeReplies has a resolver that answers with as much as a message may have.
func TestHugeReplies(t *testing.T) {
	var rrs []string
	for i := range 200 {
		rrs = append(rrs, fmt.Sprintf("big.example. 60 IN TXT %q", strings.Repeat("x", 250)+fmt.Sprint(i)))
	}
	u := newUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if w.RemoteAddr().Network() == "udp" {
			m := new(dns.Msg)
			m.SetReply(q)
			m.Truncated = true
			_ = w.WriteMsg(m)
			return
		}
		reply(w, q, rrs...)
	})
	s := newServer(t, "nameserver 127.0.0.1\n", u.port)
	if r := ask(t, s, "udp", "big.example.", dns.TypeTXT, nil); !r.Truncated || r.Len() > dns.MinMsgSize {
		t.Error(r.Truncated, r.Len())
	}
	if r := ask(t, s, "tcp", "big.example.", dns.TypeTXT, nil); r.Truncated || len(r.Answer) != len(rrs) {
		t.Error(r.Truncated, len(r.Answer))
	}
	// A UDP reply longer than the client can take is cut, and the client told.
	m := new(dns.Msg)
	m.SetQuestion("big.example.", dns.TypeTXT)
	for _, size := range []int{dns.MinMsgSize, 1000, ednsSize} {
		long := new(dns.Msg)
		long.SetReply(m)
		for _, text := range rrs[:10] {
			rr, err := dns.NewRR(text)
			if err != nil {
				t.Fatal(err)
			}
			long.Answer = append(long.Answer, rr)
		}
		b := pack(long, size)
		if err := new(dns.Msg).Unpack(b); err != nil || len(b) > size || b[2]&2 == 0 {
			t.Errorf("%d bytes for %d: %v", len(b), size, err)
		}
	}
}

// packed is a query for the IPv4 address of a name.
func packed(t *testing.T, name string) []byte {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, dns.TypeA)
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSlowResolver floods with queries that nobody answers: they are bounded, and names are answered meanwhile.
func TestSlowResolver(t *testing.T) {
	release := make(chan struct{})
	u := newUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		<-release
		reply(w, q)
	})
	defer close(release)
	s := newServer(t, "nameserver 127.0.0.1\n", u.port)
	conn, err := net.Dial("udp", s.own[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := packed(t, "slow.example.")
	before := runtime.NumGoroutine()
	// One more than may wait is told so at once.
	for i := range sourceAsking + 1 {
		binary.BigEndian.PutUint16(b, uint16(i))
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	reply := make([]byte, 512)
	if err := conn.SetReadDeadline(time.Now().Add(forwardTime / 2)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(reply)
	if err != nil {
		t.Fatal("the query that is too many:", err)
	}
	if reply[3]&0xf != dns.RcodeServerFailure || binary.BigEndian.Uint16(reply) != sourceAsking {
		t.Errorf("%x", reply[:n])
	}
	for range 200 { // as many as a socket's usual buffer holds
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if r := ask(t, s, "udp", "web.vm.", dns.TypeA, nil); len(r.Answer) != 1 {
		t.Error(r)
	}
	// Each has at most its own goroutine, that of its socket's deadline, and the resolver's of this test.
	if n := runtime.NumGoroutine() - before; n > 3*sourceAsking {
		t.Errorf("%d goroutines more", n)
	}
	if n := len(s.asking); n != sourceAsking {
		t.Errorf("%d queries wait", n)
	}
}

// TestFlood has a guest that sends as fast as it can, and another that wants to know one thing.
func TestFlood(t *testing.T) {
	s := newServer(t, "", 1)
	b := packed(t, "web.vm.")
	flood, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 77, 0, 66)}, net.UDPAddrFromAddrPort(s.own[0]))
	if err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	ended.Add(1)
	var sent atomic.Int64
	go func() {
		defer ended.Done()
		for {
			if _, err := flood.Write(b); err != nil {
				return // closed
			}
			sent.Add(1)
		}
	}()
	defer ended.Wait()
	defer flood.Close()
	waitFor(t, "the flood uses all that it may", func() bool { return sent.Load() > 2*queryBurst })
	c := dns.Client{Timeout: time.Second, Dialer: &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(127, 77, 0, 5)}, Timeout: time.Second}}
	lost := 0
	for range 100 {
		if _, _, err := c.Exchange(new(dns.Msg).SetQuestion("web.vm.", dns.TypeA), s.own[0].String()); err != nil {
			lost++
		}
	}
	if lost > 5 {
		t.Errorf("%d of 100 queries were lost", lost)
	}
	s.sources.mu.Lock()
	defer s.sources.mu.Unlock()
	if n := len(s.sources.bySource); n != 2 {
		t.Errorf("%d sources", n)
	}
}

// TestConnections opens more than one source may have, sends half a query and leaves them.
func TestConnections(t *testing.T) {
	s := newServer(t, "", 1)
	var conns []net.Conn
	for range sourceConns {
		c, err := net.Dial("tcp", s.own[0].String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte{0, 40, 1}); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	waitFor(t, "all are taken", func() bool { return len(s.conns) == sourceConns })
	c, err := net.Dial("tcp", s.own[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF && !strings.Contains(fmt.Sprint(err), "reset") {
		t.Errorf("one too many: %v", err)
	}
	if r := ask(t, s, "udp", "web.vm.", dns.TypeA, nil); len(r.Answer) != 1 {
		t.Error(r)
	}
	// Too short, too long: the connection ends.
	conns[0].Close()
	waitFor(t, "it is left", func() bool { return len(s.conns) == sourceConns-1 })
	for _, length := range []uint16{0, 5, maxQuery + 1, 65535} {
		c, err := net.Dial("tcp", s.own[0].String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(binary.BigEndian.AppendUint16(nil, length)); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(tcpIdle / 2)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("length %d: %v", length, err)
		}
		c.Close()
		waitFor(t, "it is left", func() bool { return len(s.conns) == sourceConns-1 })
	}
}

func TestSources(t *testing.T) {
	s := sources{bySource: map[netip.Addr]*source{}}
	a := netip.MustParseAddr("172.30.0.2")
	n := 0
	for ; n < 3*queryBurst && s.take(a); n++ {
	}
	if n < queryBurst || n >= 3*queryBurst {
		t.Errorf("%d queries at once", n)
	}
	if !s.take(netip.MustParseAddr("172.30.0.3")) {
		t.Error("another source pays for it")
	}
	for n = 0; n < 3*forwardBurst && s.forward(a); n++ {
	}
	if n < forwardBurst || n >= 2*forwardBurst {
		t.Errorf("%d queries for resolvers at once", n)
	}
	for range sourceAsking {
		if !s.begin(a, maxAsking) {
			t.Fatal("refused")
		}
	}
	if s.begin(a, maxAsking) {
		t.Error("one too many waits")
	}
	s.end(a)
	if !s.begin(a, maxAsking) {
		t.Error("what has ended is still counted")
	}
	// Sources that never end are bounded, and those that have something under way are kept.
	b := netip.MustParseAddr("fd00::")
	for range 2 * maxSources {
		b = b.Next()
		s.take(b)
	}
	if len(s.bySource) > maxSources || s.bySource[a] == nil {
		t.Error(len(s.bySource))
	}
	for _, x := range s.bySource {
		x.queries.at = x.queries.at.Add(-2 * sourceForgets)
	}
	s.forgot = s.forgot.Add(-2 * sourceForgets)
	if !s.take(b) || len(s.bySource) != 2 || s.bySource[a] == nil {
		t.Error("after a while:", len(s.bySource))
	}
}

// TestManyTake has guests take all that they get, of queries and of connections: ten leave something for one more, and so do a hundred once
// what they had first has ended.
func TestManyTake(t *testing.T) {
	s := &Server{asking: make(chan struct{}, maxAsking), conns: make(chan struct{}, maxConns), sources: sources{bySource: map[netip.Addr]*source{}}}
	for _, c := range []struct {
		what string
		take func(netip.Addr) bool
		give func(netip.Addr)
	}{{"queries", s.begin, s.end}, {"connections", s.admit, s.leave}} {
		var greedy [100]int // what each has
		address := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 30, 0, byte(i)}) }
		for round := range 50 {
			for i := range greedy {
				for ; greedy[i] > 0; greedy[i]-- {
					c.give(address(i))
				}
				for c.take(address(i)) {
					greedy[i]++
				}
				if round == 0 && i < 10 || round > 40 {
					if !c.take(address(200)) {
						t.Fatalf("round %d: no %s for one more guest; the others have %v", round, c.what, greedy)
					}
					c.give(address(200))
				}
			}
		}
	}
}

// drips is a connection from which each read gets one byte, ever the same query.
type drips struct {
	net.Conn
	query              []byte
	at                 int
	written, deadlines int
	last               time.Time
}

func (d *drips) Read(b []byte) (int, error) {
	b[0] = d.query[d.at%len(d.query)]
	d.at++
	return 1, nil
}
func (d *drips) Write(b []byte) (int, error)      { d.written++; return len(b), nil }
func (d *drips) SetWriteDeadline(time.Time) error { return nil }
func (d *drips) SetReadDeadline(t time.Time) error {
	if until := time.Until(t); until > 0 && until <= tcpIdle {
		d.deadlines++
	}
	d.last = t
	return nil
}

// TestDrip has a guest send a query byte by byte: its time is counted from the first, and not anew with each.
func TestDrip(t *testing.T) {
	s := newServer(t, "", 1)
	b := packed(t, "web.vm.")
	d := &drips{query: framed(b)}
	for i := range 3 {
		if !s.serveOne(d, some["web"][0], time.Now().Add(time.Hour)) || d.at != (i+1)*len(d.query) || d.deadlines != i+1 || d.written != i+1 {
			t.Fatalf("query %d: %d bytes read, %d deadlines, %d replies", i, d.at, d.deadlines, d.written)
		}
	}
	// The whole connection has its time too, however much comes.
	end := time.Now().Add(tcpIdle / 2)
	if s.serveOne(d, some["web"][0], end); !d.last.Equal(end) {
		t.Errorf("it may go on until %v, not %v", d.last, end)
	}
}

// TestHugeQueries sends as much as a datagram holds, of what could be a query and of what could not.
func TestHugeQueries(t *testing.T) {
	s := newServer(t, "", 1)
	conn, err := net.Dial("udp", s.own[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := packed(t, "web.vm.")
	counts := append([]byte(nil), b...)
	binary.BigEndian.PutUint16(counts[4:], 65535) // questions
	for i, head := range [][]byte{b, counts, b[:headerSize], make([]byte, headerSize)} {
		for _, fill := range []byte{0, 1, 0xc0, 0xff} {
			huge := append(append([]byte(nil), head...), bytes.Repeat([]byte{fill}, 65507-len(head))...)
			binary.BigEndian.PutUint16(huge, uint16(0x4200+i)<<2|uint16(fill&3))
			if _, err := conn.Write(huge); err != nil {
				t.Fatal(err)
			}
			reply := make([]byte, 65536)
			if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, err := conn.Read(reply)
			if err != nil || n > dns.MinMsgSize || reply[0] != huge[0] || reply[1] != huge[1] || reply[2]&0x80 == 0 {
				t.Errorf("head %d filled with %x: %d bytes, %x, %v", i, fill, n, reply[:headerSize], err)
			}
		}
	}
}

func TestMayAsk(t *testing.T) {
	s := &Server{zone: zone{prefixes: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/16"), netip.MustParsePrefix("fd12::/64")}}}
	s.host.looked, s.host.addrs = time.Now(), []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	for addr, want := range map[string]bool{"172.30.255.1": true, "172.31.0.1": false, "fd12::9": true, "fd12:0:0:1::9": false, "127.0.0.1": true, "::1": true,
		"192.0.2.7": true, "192.0.2.8": false} {
		if s.mayAsk(netip.MustParseAddr(addr)) != want {
			t.Error(addr)
		}
	}
	s.host.looked = time.Time{}
	if s.mayAsk(netip.MustParseAddr("192.0.2.7")) || !s.host.has(netip.MustParseAddr("127.0.0.1")) {
		t.Error("the host's addresses were not read again")
	}
}

// TestPortTaken listens where somebody does.
func TestPortTaken(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		o := Options{Gateways: []netip.Prefix{netip.MustParsePrefix("127.77.0.1/24")}, Port: freePort(t), Log: quiet()}
		address := netip.AddrPortFrom(o.Gateways[0].Addr(), o.Port).String()
		var taken io.Closer
		var err error
		if network == "udp" {
			taken, err = net.ListenPacket(network, address)
		} else {
			taken, err = net.Listen(network, address)
		}
		if err != nil {
			t.Fatal(err)
		}
		if s, err := Listen(o); err == nil {
			t.Errorf("%s: listens all the same: %v", network, s.Close())
		} else if !strings.Contains(err.Error(), "of 127.77.0.1") {
			t.Error(err)
		}
		taken.Close()
		s, err := Listen(o)
		if err != nil {
			t.Fatal("what was refused is still held:", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestParseResolvConf(t *testing.T) {
	for text, want := range map[string][]string{
		"": {"127.0.0.1:53"},
		"# nothing\nsearch example.org\noptions ndots:5\nnameserver\nnameserver web\n":                          {"127.0.0.1:53"},
		"nameserver 127.0.0.53 # stub\n  nameserver\tfe80::1%eth0\n;nameserver 192.0.2.9\nnameserver 192.0.2.1": {"127.0.0.53:53", "[fe80::1%eth0]:53", "192.0.2.1:53"},
		strings.Repeat("nameserver 192.0.2.1\n", 100):                                                           {"192.0.2.1:53", "192.0.2.1:53", "192.0.2.1:53"},
	} {
		var got []string
		for _, s := range parseResolvConf([]byte(text), dnsPort) {
			got = append(got, s.String())
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q: %s", text, d)
		}
	}
}

// FuzzAnswer sends anything: what is answered is a reply to it of bounded size, and a name of the zone is never forwarded.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"web.vm.", "none.vm.", "2.0.77.127.in-addr.arpa.", "example.org.", "x.ip6.arpa."} {
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeANY)
		m.SetEdns0(4096, true)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-15])
	}
	s := &Server{own: []netip.AddrPort{netip.MustParseAddrPort("127.77.0.1:53")}}
	s.zone = zone{names: some, prefixes: []netip.Prefix{netip.MustParsePrefix("127.77.0.0/24"), netip.MustParsePrefix("fd12:3456:789a::/64")}, canary: s.canaryOf}
	f.Fuzz(func(t *testing.T, b []byte) {
		reply, query, size := s.answer(b)
		if reply == nil {
			if query != nil || len(b) >= headerSize && b[2]&0x80 == 0 {
				t.Fatal("a query has no reply")
			}
			return
		}
		if query != nil {
			if dns.IsSubDomain(zoneName, dns.CanonicalName(query.Question[0].Name)) {
				t.Fatalf("%s would be forwarded", query.Question[0].Name)
			}
			if _, err := query.Pack(); err != nil {
				t.Fatal(err)
			}
		}
		out := pack(reply, size)
		if len(out) < headerSize || len(out) > size || size > ednsSize || out[0] != b[0] || out[1] != b[1] || out[2]&0x80 == 0 {
			t.Fatalf("%d bytes for %d: %x", len(out), size, out)
		}
	})
}

// TestFound looks whether the host's programs would come here, by every way that resolv.conf can lead.
func TestFound(t *testing.T) {
	var at atomic.Value                                                  // where the server is
	elsewhere := newUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) { // one that knows where our zone is
		c := dns.Client{}
		r, _, err := c.Exchange(q, at.Load().(string))
		if err != nil {
			t.Error(err)
			return
		}
		_ = w.WriteMsg(r)
	})
	s := newServer(t, "nameserver 127.0.0.1\n", elsewhere.port)
	at.Store(s.own[0].String())
	if !s.found(context.Background()) {
		t.Error("through a resolver that asks here")
	}
	if r := ask(t, s, "udp", "_0011223344556677.vm.", dns.TypeA, nil); r.Rcode != dns.RcodeNameError {
		t.Error(r)
	}
	liar := newUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) { reply(w, q, q.Question[0].Name+" 60 IN A 192.0.2.1") })
	s.forward.conf.port = liar.port
	if s.found(context.Background()) {
		t.Error("through a resolver that has an answer for everything")
	}
	silent := newUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) { reply(w, q) })
	s.forward.conf.port = silent.port
	if s.found(context.Background()) {
		t.Error("through a resolver that knows nothing")
	}
	if err := os.WriteFile(s.o.ResolvConf, []byte("nameserver 127.77.0.9\nnameserver 127.77.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.forward.conf.port = s.own[0].Port()
	if !s.found(context.Background()) {
		t.Error("directly, as the second resolver")
	}
}
