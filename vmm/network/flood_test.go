package network

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sender is a guest: what it writes to the tap comes out of the guest's network card.
type sender struct {
	t   *testing.T
	tap *os.File
	mac net.HardwareAddr
	n   *Network
	ip4 netip.Addr
	ip6 netip.Addr
}

func newSender(t *testing.T, n *Network, serial uint64) *sender {
	t.Helper()
	c := connection(serial, "")
	if err := n.Connect(c); err != nil {
		t.Fatal(err)
	}
	f, err := n.Tap(context.Background(), serial, "uuid")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	mac, err := net.ParseMAC(c.MAC)
	if err != nil {
		t.Fatal(err)
	}
	return &sender{t, f, mac, n, c.Address, n.Address6(c.Address).Addr()}
}

// answerable makes the host know the guest's MAC, as if the guest answered ARP. The bridge forgets
// that when its own MAC changes, with another guest's tap.
func (s *sender) answerable() {
	s.t.Helper()
	bridge, err := netlink.LinkByName(s.n.o.Bridge)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, ip := range []netip.Addr{s.ip4, s.ip6} {
		neighbour(s.t, bridge, ip, s.mac)
	}
}

// mac is the bridge's, which changes with its ports.
func (n *Network) mac(t *testing.T) net.HardwareAddr {
	l, err := net.InterfaceByName(n.o.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	return l.HardwareAddr
}

func neighbour(t *testing.T, l netlink.Link, ip netip.Addr, mac net.HardwareAddr) {
	t.Helper()
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac}); err != nil {
		t.Fatal(err)
	}
}

func (s *sender) from(to netip.Addr) netip.Addr {
	if to.Is4() {
		return s.ip4
	}
	return s.ip6
}

// send writes one packet of the guest to an address.
func (s *sender) send(to netip.Addr, protocol byte, payload []byte) {
	s.t.Helper()
	if _, err := s.tap.Write(s.frame(to, protocol, payload)); err != nil {
		s.t.Fatal(err)
	}
}

// frame is one packet of the guest to an address, as a tap takes it.
func (s *sender) frame(to netip.Addr, protocol byte, payload []byte) []byte {
	s.t.Helper()
	from := s.from(to)
	sum := uint32(len(payload)) + uint32(protocol)
	for _, b := range [][]byte{from.AsSlice(), to.AsSlice(), payload} {
		for i, c := range b {
			sum += uint32(c) << (8 * (1 - i%2))
		}
	}
	if protocol == unix.IPPROTO_ICMP { // which has no pseudo header
		sum = 0
		for i, c := range payload {
			sum += uint32(c) << (8 * (1 - i%2))
		}
	}
	at := map[byte]int{unix.IPPROTO_UDP: 6, unix.IPPROTO_TCP: 16}[protocol]
	if at == 0 {
		at = 2
	}
	binary.BigEndian.PutUint16(payload[at:], fold(sum))
	frame := slices.Concat(make([]byte, 10), s.n.mac(s.t), s.mac) // after the header of IFF_VNET_HDR
	if to.Is4() {
		head := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0}
		binary.BigEndian.PutUint16(head[2:], uint16(20+len(payload)))
		head = slices.Concat(head, from.AsSlice(), to.AsSlice())
		sum := uint32(0)
		for i, c := range head {
			sum += uint32(c) << (8 * (1 - i%2))
		}
		binary.BigEndian.PutUint16(head[10:], fold(sum))
		return slices.Concat(frame, []byte{0x08, 0x00}, head, payload)
	}
	head := []byte{0x60, 0, 0, 0, 0, byte(len(payload)), protocol, 64}
	return slices.Concat(frame, []byte{0x86, 0xdd}, head, from.AsSlice(), to.AsSlice(), payload)
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func (s *sender) udp(to netip.AddrPort, from uint16) {
	p := binary.BigEndian.AppendUint16(nil, from)
	p = binary.BigEndian.AppendUint16(p, to.Port())
	s.send(to.Addr(), unix.IPPROTO_UDP, append(p, 0, 12, 0, 0, 'b', 'a', 'n', 'g'))
}

func (s *sender) syn(to netip.AddrPort, from uint16) {
	p := binary.BigEndian.AppendUint16(nil, from)
	p = binary.BigEndian.AppendUint16(p, to.Port())
	s.send(to.Addr(), unix.IPPROTO_TCP, append(p, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0))
}

func (s *sender) echo(to netip.Addr, id uint16) {
	kind, protocol := byte(icmpEcho), byte(unix.IPPROTO_ICMP)
	if to.Is6() {
		kind, protocol = icmp6Echo, unix.IPPROTO_ICMPV6
	}
	s.send(to, protocol, append(binary.BigEndian.AppendUint16([]byte{kind, 0, 0, 0}, id), 0, 1))
}

// answers counts, until the time ends, the packets of a protocol that come to the guest from an address.
func (s *sender) answers(from netip.Addr, protocol byte, want int) int {
	s.t.Helper()
	got := 0
	frame := make([]byte, 2048)
	for end := time.Now().Add(2 * time.Second); got < want && time.Now().Before(end); {
		fds := []unix.PollFd{{Fd: int32(s.tap.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 50); err != nil || n == 0 {
			continue
		}
		n, err := unix.Read(int(s.tap.Fd()), frame)
		if err != nil {
			s.t.Fatal(err)
		}
		p := frame[min(24, n):n]
		if len(p) < 40 {
			p = append(p, make([]byte, 40)...)
		}
		if from.Is4() && p[0]>>4 == 4 && p[9] == protocol && string(p[12:16]) == string(from.AsSlice()) ||
			from.Is6() && p[0]>>4 == 6 && p[6] == protocol && string(p[8:24]) == string(from.AsSlice()) {
			got++
		}
	}
	return got
}

// tracked is how many connections the kernel tracks in this network namespace.
func tracked(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// outside is the far end of the link to the world.
type outside struct {
	t  *testing.T
	fd int
	at unix.SockaddrLinklayer
}

// packets counts those of UDP to a port that come out, until there are so many or 2 s have passed, and answers each.
func (o outside) packets(port uint16, want int) int {
	o.t.Helper()
	got := 0
	frame := make([]byte, 2048)
	for end := time.Now().Add(2 * time.Second); got < want && time.Now().Before(end); {
		n, _, err := unix.Recvfrom(o.fd, frame, 0)
		if err != nil {
			continue // nothing came for a while
		}
		p := frame[min(14, n):n]
		source, length, ports := 12, 4, 20
		if len(p) > 44 && p[0]>>4 == 6 {
			source, length, ports = 8, 16, 40
		}
		if len(p) < ports+8 || p[9] != unix.IPPROTO_UDP && p[6] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(p[ports+2:]) != port {
			continue
		}
		got++
		// Both ends exchanged leave the checksums right.
		swap(frame[:6], frame[6:12])
		swap(p[source:source+length], p[source+length:source+2*length])
		swap(p[ports:ports+2], p[ports+2:ports+4])
		if err := unix.Sendto(o.fd, frame[:n], 0, &o.at); err != nil {
			o.t.Fatal(err)
		}
	}
	return got
}

func swap(a, b []byte) {
	c := slices.Clone(a)
	copy(a, b)
	copy(b, c)
}

// world makes a link with default routes of both families.
func world(t *testing.T) outside {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "world0"
	l := netlink.NewVeth(attrs)
	l.PeerName = "world1"
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(l) })
	peer, err := netlink.LinkByName(l.PeerName)
	if err == nil {
		err = sysctl("1", "ipv6", "conf", l.PeerName, "disable_ipv6") // the far end is nobody's but the test's
	}
	if err == nil {
		err = netlink.LinkSetUp(peer)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"192.0.2.1/24", "2001:db8:1::1/64"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(l, addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
	for _, next := range []string{"192.0.2.2", "2001:db8:1::2"} {
		neighbour(t, l, netip.MustParseAddr(next), peer.Attrs().HardwareAddr)
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Index, Gw: net.ParseIP(next)}); err != nil {
			t.Fatal(err)
		}
	}
	const all = 0x0300 // htons(ETH_P_ALL)
	at := unix.SockaddrLinklayer{Protocol: all, Ifindex: peer.Attrs().Index}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err == nil {
		err = unix.Bind(fd, &at)
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	}
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return outside{t, fd, at}
}

var (
	far  = netip.MustParseAddr("198.51.100.1")
	far6 = netip.MustParseAddr("3fff:100::1")
)

// TestFlood floods, as a guest, the host's table of connections in all ways that lead out of the guest.
func TestFlood(t *testing.T) {
	privileged(t)
	out := world(t)
	o := options(true)
	o.Prefix6 = netip.MustParsePrefix("fd66::/64")
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Release()
	const held = 300
	n.held = held // before Settle, which makes the tables
	if err := n.Settle(); err != nil {
		t.Fatal(err)
	}
	a, b := newSender(t, n, 7), newSender(t, n, 8)
	a.answerable()
	before := tracked(t)

	// What all guests may ask of the gateway is answered, as often as they like, and not tracked.
	for _, gateway := range []netip.Addr{n.Gateway(), n.Gateway6()} {
		protocol := byte(unix.IPPROTO_ICMP)
		if gateway.Is6() {
			protocol = unix.IPPROTO_ICMPV6
		}
		names, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(gateway, 53)))
		if err != nil {
			t.Fatal(err)
		}
		go func() { // ends with the socket
			b := make([]byte, 64)
			for {
				n, from, err := names.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				_, _ = names.WriteToUDPAddrPort(b[:n], from)
			}
		}()
		for i := range uint16(200) {
			a.echo(gateway, i)
			if i < 20 && a.answers(gateway, protocol, 1) != 1 {
				t.Fatalf("echo %d of %s is not answered", i, gateway)
			}
		}
		for i := range uint16(200) {
			a.udp(netip.AddrPortFrom(gateway, 53), 10000+i)
			a.syn(netip.AddrPortFrom(gateway, 53), 20000+i)
		}
		if got := a.answers(gateway, unix.IPPROTO_UDP, 200); got < 100 { // a socket may drop some
			t.Errorf("%d of 200 queries to %s are answered", got, gateway)
		}
		names.Close()
	}
	if got := tracked(t) - before; got > 5 {
		t.Errorf("%d connections of echo and DNS are tracked", got)
	}

	// What leads to the world is tracked, in both families together, up to the bound.
	const old, flood, last = 9, 10, 11
	at := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	a.udp(at(far, old), 1000)
	a.udp(at(far6, old), 1000)
	if got := out.packets(old, 2); got != 2 {
		t.Fatalf("%d of 2 packets reach the world", got)
	}
	for _, from := range []netip.Addr{far, far6} {
		if a.answers(from, unix.IPPROTO_UDP, 1) != 1 {
			t.Fatalf("no answer of %s", from)
		}
	}
	for i := range uint16(3000) {
		for _, to := range []netip.Addr{far, far6} {
			a.udp(at(to, flood), 2000+i)
			a.syn(at(to, flood), 2000+i)
		}
	}
	// What was begun before goes on. These packets come last, so that all others have been through.
	for range 50 {
		a.udp(at(far, old), 1000)
		a.udp(at(far6, old), 1000)
	}
	if got := out.packets(old, 100); got < 100 {
		t.Errorf("%d of 100 packets of connections that were begun before get through", got)
	}
	if got := tracked(t) - before; got < held/2 || got > held+held/10 {
		t.Errorf("%d connections of a guest are tracked, want %d", got, held)
	}
	// Another guest has its own share.
	a.udp(at(far, last), 60000)
	a.udp(at(far6, last), 60000)
	b.udp(at(far, last), 60000)
	b.udp(at(far6, last), 60000)
	a.udp(at(far, old), 1000)
	if got := out.packets(last, 3); got != 2 {
		t.Errorf("%d new connections get through, want the 2 of the other guest", got)
	}
}

// TestFloodRate begins connections faster than a guest may.
func TestFloodRate(t *testing.T) {
	privileged(t)
	world(t)
	n, err := New(options(true))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Release()
	n.held = 60000 // the kernel counts no further
	if err := n.Settle(); err != nil {
		t.Fatal(err)
	}
	a := newSender(t, n, 7)
	before, began := tracked(t), time.Now()
	for i := range 20000 {
		a.udp(netip.AddrPortFrom(far, uint16(i)), uint16(i>>8)+1)
	}
	most := maxBurst + int(maxRate*time.Since(began).Seconds()) + 100
	if got := tracked(t) - before; got < maxBurst/2 || got > most {
		t.Errorf("%d connections, want %d to %d", got, maxBurst/2, most)
	}
}

func TestHeldBy(t *testing.T) {
	for table, want := range map[string]uint32{"262144\n": 8192, "65536\n": 4096, "16\n": 1, "3": 1, "": 4096, "1000000\n": 8192} {
		if got := heldBy(table); got != want {
			t.Errorf("%q: %d, want %d", table, got, want)
		}
	}
}
