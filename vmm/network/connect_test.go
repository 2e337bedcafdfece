package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"banger/vmm"
)

// inForce gives what our sets hold for guests, a line for each element.
func inForce(t *testing.T, n *Network) []string {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, s := range sets {
		elements, err := c.GetSetElements(n.set(s))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range elements {
			all = append(all, fmt.Sprintf("%s %q %q", s.name, e.Key, e.Val))
		}
	}
	slices.Sort(all)
	return all
}

func wanted(t *testing.T, n *Network, all ...vmm.Connection) []string {
	t.Helper()
	var lines []string
	for _, c := range all {
		elements, err := n.elementsOf(c)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range elements {
			lines = append(lines, fmt.Sprintf("%s %q %q", e.set, e.key, e.value))
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

func connection(serial uint64, publish string) vmm.Connection {
	all, err := vmm.ParsePublications(publish)
	if err != nil {
		panic(err)
	}
	return vmm.Connection{Serial: serial, MAC: fmt.Sprintf("02:00:00:00:00:%02x", serial),
		Address: netip.AddrFrom4([4]byte{10, 66, 0, byte(serial)}), Isolate: serial%2 == 0, Publish: all}
}

// up gives the namespace's loopback and a link with an address of each family.
func up(t *testing.T) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestConnect(t *testing.T) {
	privileged(t)
	up(t)
	o := options(true)
	o.Prefix6 = LocalPrefix6("inst")
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Release(); err != nil {
			t.Error(err)
		}
	}()
	now := map[uint64]vmm.Connection{}
	check := func(what string) {
		t.Helper()
		var all []vmm.Connection
		for _, c := range now {
			all = append(all, c)
		}
		if got, want := inForce(t, n), wanted(t, n, all...); !slices.Equal(got, want) {
			t.Fatalf("%s: in force is\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	for i, publish := range []string{
		"", "8080:80", "0.0.0.0:8080:80", "0.0.0.0:8080:80\n0.0.0.0:8081:80\n[::]:8080:80", "0.0.0.0:8081:80", "0.0.0.0:8081:81\n8082:80/udp", "",
	} {
		for serial := uint64(2); serial < 4; serial++ {
			c := connection(serial, strings.ReplaceAll(publish, "808", fmt.Sprint(808+serial)))
			if err := n.Connect(c); err != nil {
				t.Fatalf("%d: %q: %v", i, publish, err)
			}
			now[serial] = c
			check(fmt.Sprintf("%d: %q", i, publish))
		}
	}

	// A port that somebody has refuses all, and changes nothing.
	taken, err := net.Listen("tcp4", "127.0.0.1:9000")
	if err != nil {
		t.Fatal(err)
	}
	c := connection(2, "0.0.0.0:9100:80\n9101:80")
	if err := n.Connect(c); err != nil {
		t.Fatal(err)
	}
	now[2] = c
	if err := n.Connect(connection(2, "9100:80\n9102:80\n9000:80")); !errors.Is(err, vmm.ErrAddressInUse) {
		t.Fatalf("a port that is taken: %v", err)
	}
	check("after a refusal")
	for _, port := range []string{"9100", "9101"} {
		if l, err := net.Listen("tcp4", "127.0.0.1:"+port); err == nil {
			_ = l.Close()
			t.Errorf("port %s is not held", port)
		}
	}
	if l, err := net.Listen("tcp4", "127.0.0.1:9102"); err != nil {
		t.Errorf("a refused port is held: %v", err)
	} else {
		_ = l.Close()
	}
	if err := n.Connect(connection(2, "10.1.2.3:9103:80")); !errors.Is(err, vmm.ErrInvalid) {
		t.Errorf("an address of another host: %v", err)
	}
	_ = taken.Close()

	// Somebody flushed everything.
	f, err := nftables.New()
	if err == nil {
		f.FlushRuleset()
		err = f.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	c = connection(3, "0.0.0.0:9000:80")
	if err := n.Connect(c); err != nil {
		t.Fatal(err)
	}
	now[3] = c
	check("after a flush")

	n.Disconnect(2)
	n.Disconnect(2)
	delete(now, 2)
	check("one gone")
	if l, err := net.Listen("tcp4", "127.0.0.1:9100"); err != nil {
		t.Errorf("the port of a guest that is gone: %v", err)
	} else {
		_ = l.Close()
	}

	// The next daemon leaves what is in force until it knows who is there.
	tap, err := n.Tap(context.Background(), 3, "uuid-3")
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	for _, f := range n.guests[3].forwards {
		f.Close()
	}
	next, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := next.Release(); err != nil {
			t.Error(err)
		}
	}()
	check("a new daemon")
	if err := next.Connect(connection(5, "9200:80")); err != nil {
		t.Fatal(err)
	}
	check("a new daemon that adopts")
	if err := next.Settle(); err != nil {
		t.Fatal(err)
	}
	delete(now, 3)
	now[5] = connection(5, "9200:80")
	check("settled")
}

func TestAddresses6(t *testing.T) {
	n := &Network{o: Options{Prefix: prefix}, prefix6: netip.MustParsePrefix("fd12:3456:789a::/64")}
	for in, want := range map[string]string{"10.66.0.1": "fd12:3456:789a::1/64", "10.66.1.2": "fd12:3456:789a::102/64"} {
		if got := n.Address6(netip.MustParseAddr(in)).String(); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	a, b := LocalPrefix6("one"), LocalPrefix6("two")
	if a == b || a != LocalPrefix6("one") || a.Bits() != 64 || !netip.MustParsePrefix("fd00::/8").Contains(a.Addr()) {
		t.Errorf("%v %v", a, b)
	}
	if got := linkLocal(net.HardwareAddr{2, 0xc1, 0xdc, 0x20, 0xcb, 0xed}).String(); got != "fe80::c1:dcff:fe20:cbed" {
		t.Error(got)
	}
}

func TestIntervals(t *testing.T) {
	var in []netip.Prefix
	for _, s := range []string{"10.1.0.0/16", "10.0.0.0/8", "192.0.2.128/25", "192.0.2.0/25", "fc00::/7", "255.0.0.0/8", "10.0.0.0/8"} {
		in = append(in, netip.MustParsePrefix(s))
	}
	var got []string
	for _, e := range intervals(in, true) {
		a, _ := netip.AddrFromSlice(e.Key)
		got = append(got, fmt.Sprintf("%s %v", a, e.IntervalEnd))
	}
	want := []string{"10.0.0.0 false", "11.0.0.0 true", "192.0.2.0 false", "192.0.2.128 true", "192.0.2.128 false", "192.0.3.0 true", "255.0.0.0 false"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := last(netip.MustParsePrefix("fc00::/7")).String(); got != "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" {
		t.Error(got)
	}
}

// TestForward serves the host's own clients: both directions, half-closed connections, datagrams, and nobody of the bridge.
func TestForward(t *testing.T) {
	privileged(t)
	up(t)
	guest := netip.MustParseAddr("127.0.0.2")
	l, err := net.Listen("tcp4", "127.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(c)
			_, _ = c.Write(append([]byte("got "), b...))
			_ = c.Close()
		}
	}()
	u, err := net.ListenPacket("udp4", "127.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go func() { // ends with u
		b := make([]byte, 100)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(append([]byte("got "), b[:n]...), from)
		}
	}()
	all, err := vmm.ParsePublications("9300:80\n9300:80/udp\n[::1]:9300:80\n9301:80")
	if err != nil {
		t.Fatal(err)
	}
	var open []*forward
	for i, p := range all {
		f, err := openForward(p, guest, func(netip.Addr) bool { return i == 3 })
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, f)
	}
	ask := func(network, at string) string {
		c, err := net.Dial(network, at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if network == "udp" {
			b := make([]byte, 100)
			n, err := c.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			return string(b[:n])
		}
		_ = c.(*net.TCPConn).CloseWrite() // where it was refused the read says so
		b, _ := io.ReadAll(c)
		return string(b)
	}
	for _, x := range []struct{ network, at, want string }{
		{"tcp", "127.0.0.1:9300", "got ping"}, {"udp", "127.0.0.1:9300", "got ping"}, {"tcp", "[::1]:9300", "got ping"}, {"tcp", "127.0.0.1:9301", ""},
	} {
		if got := ask(x.network, x.at); got != x.want {
			t.Errorf("%s %s: %q, want %q", x.network, x.at, got, x.want)
		}
	}
	// What goes through a port ends with it.
	c, err := net.Dial("tcp", "127.0.0.1:9300")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, f := range open {
		f.Close()
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives its port")
	}
	if _, err := net.Dial("tcp", "127.0.0.1:9300"); err == nil {
		t.Error("the port is open after its end")
	}
}

// TestManyClients lets no more clients to a port than it says, whether they have a connection to the guest or not.
func TestManyClients(t *testing.T) {
	f := &forward{flows: make(map[net.Conn]net.Conn)}
	all := make([]net.Conn, maxClients)
	for i := range all {
		client, guest := net.Pipe()
		if all[i] = client; !f.enter(client) || i%2 == 0 && !f.join(client, guest) {
			t.Fatalf("client %d is refused", i)
		}
	}
	late, _ := net.Pipe()
	if f.enter(late) {
		t.Error("one more is let in")
	}
	f.leave(all[0])
	if _, err := all[0].Write(nil); err == nil {
		t.Error("the connection of a client that has left is open")
	}
	if !f.enter(late) {
		t.Error("the place of one that has left stays taken")
	}
}

// TestForwardUnreachable closes a port while a client of it waits for a guest that does not answer.
func TestForwardUnreachable(t *testing.T) {
	privileged(t)
	up(t)
	n, err := New(options(false))
	if err != nil {
		t.Fatal(err)
	}
	tap, err := n.Tap(context.Background(), 3, "uuid-3") // nobody reads it
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	f, err := openForward(vmm.Publication{Host: netip.MustParseAddrPort("127.0.0.1:9400"), Guest: 80, Protocol: "tcp"}, netip.MustParseAddr("10.66.0.3"), n.isGuest)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", "127.0.0.1:9400")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for taken := false; !taken; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		taken = len(f.flows) > 0
		f.mu.Unlock()
	}
	began := time.Now()
	f.Close()
	if took := time.Since(began); took > 2*time.Second { // the kernel itself gives up after 3 s
		t.Errorf("it took %v", took)
	}
}
