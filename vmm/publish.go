package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// maxPublish bounds the list of one VM.
const maxPublish = 64

// Publication is a socket of the host that leads to a port of a guest: one line of `publish`.
type Publication struct {
	Protocol string         // tcp or udp
	Host     netip.AddrPort // 0.0.0.0 and :: stand for all addresses of their family, and of no other
	Guest    uint16
}

// String is the canonical form, HOST:PORT:GUESTPORT/PROTO.
func (p Publication) String() string {
	return fmt.Sprintf("%s:%d/%s", p.Host, p.Guest, p.Protocol)
}

// Overlaps reports whether one socket of the host cannot serve both.
func (p Publication) Overlaps(q Publication) bool {
	a, b := p.Host.Addr(), q.Host.Addr()
	return p.Protocol == q.Protocol && p.Host.Port() == q.Host.Port() && a.Is4() == b.Is4() &&
		(a == b || a.IsUnspecified() || b.IsUnspecified())
}

// Near is where a client on the host itself finds it.
func (p Publication) Near() netip.AddrPort {
	switch p.Host.Addr() {
	case netip.IPv4Unspecified():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.Host.Port())
	case netip.IPv6Unspecified():
		return netip.AddrPortFrom(netip.IPv6Loopback(), p.Host.Port())
	}
	return p.Host
}

// ParsePublications reads lines [HOST:]PORT:GUESTPORT[/PROTO]; without a HOST it is 127.0.0.1, without a PROTO tcp.
func ParsePublications(text string) ([]Publication, error) {
	var all []Publication
	for _, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		p, err := parsePublication(line)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(all, p.Overlaps); i >= 0 {
			return nil, fmt.Errorf("%s and %s want the same port of the host: %w", all[i], p, ErrInvalid)
		}
		if all = append(all, p); len(all) > maxPublish {
			return nil, fmt.Errorf("a VM has at most %d published ports: %w", maxPublish, ErrInvalid)
		}
	}
	return all, nil
}

func parsePublication(line string) (p Publication, err error) {
	bad := func(why string) (Publication, error) {
		return Publication{}, fmt.Errorf("%.128q is not HOST:PORT:GUESTPORT/PROTO, as 127.0.0.1:8080:80/tcp: %s: %w", line, why, ErrInvalid)
	}
	text, protocol, ok := strings.Cut(line, "/")
	if p.Protocol = protocol; !ok {
		p.Protocol = "tcp"
	}
	if p.Protocol != "tcp" && p.Protocol != "udp" {
		return bad("the protocol is tcp or udp")
	}
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return bad("a port of the host and one of the guest are needed")
	}
	guest, ok := port(text[i+1:])
	if !ok {
		return bad("a port is 1 to 65535")
	}
	p.Guest = guest
	host, text := "127.0.0.1", text[:i]
	if i := strings.LastIndexByte(text, ':'); i >= 0 {
		host, text = text[:i], text[i+1:]
	}
	outer, ok := port(text)
	if !ok {
		return bad("a port is 1 to 65535")
	}
	bare := strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	a, err := netip.ParseAddr(bare)
	if err != nil || a.Zone() != "" || a.IsMulticast() || a.Is6() != (len(bare) == len(host)-2) {
		return bad("the host's side is an IPv4 address, or an IPv6 one in brackets")
	}
	p.Host = netip.AddrPortFrom(a.Unmap(), outer)
	return p, nil
}

func port(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n > 0
}

// formatPublications is what ParsePublications reads, as Config keeps it.
func formatPublications(all []Publication) string {
	lines := make([]string, len(all))
	for i, p := range all {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Publications are those of Publish; what does not parse was never kept.
func (c *Config) Publications() []Publication {
	all, _ := ParsePublications(c.Publish)
	return all
}

// SocketError says in the words of vmm why a published port cannot be had.
func SocketError(p Publication, err error) error {
	kind := err
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		kind = ErrAddressInUse
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		kind = ErrAccess
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("cannot publish %s: %s is not an address of this host: %w", p, p.Host.Addr(), ErrInvalid)
	}
	return fmt.Errorf("cannot publish %s: %w", p, kind)
}

// probe tells whether the sockets could be had now, and keeps none.
func probe(all []Publication) error {
	for _, p := range all {
		family := "6"
		if p.Host.Addr().Is4() {
			family = "4"
		}
		var err error
		if p.Protocol == "udp" {
			var c *net.UDPConn
			if c, err = net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(p.Host)); err == nil {
				err = c.Close()
			}
		} else {
			var l *net.TCPListener
			if l, err = net.ListenTCP("tcp"+family, net.TCPAddrFromAddrPort(p.Host)); err == nil {
				err = l.Close()
			}
		}
		if err != nil {
			return SocketError(p, err)
		}
	}
	return nil
}

// unprivilegedPorts is the first port that everybody may bind (ip_unprivileged_port_start of ip(7)).
func unprivilegedPorts() uint16 {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	n, perr := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 16)
	if err != nil || perr != nil {
		return 1024
	}
	return uint16(n)
}

// without gives those of all that are not in some.
func without(all, some []Publication) []Publication {
	var rest []Publication
	for _, p := range all {
		if !slices.Contains(some, p) {
			rest = append(rest, p)
		}
	}
	return rest
}

// checkPublish reports what of the settings' publications cannot be with their driver; added are those that they did not have before.
func checkPublish(c *Config, driver Driver, owner uint32, all, added []Publication) error {
	if len(all) > 0 && c.Net == NetNone {
		return fmt.Errorf("a VM with net = none has no ports to publish: %w", ErrInvalid)
	}
	noUDP := driver.Capabilities().Lack(FeatureUDP)
	for _, p := range all {
		switch {
		case c.Net != NetUser:
		case !p.Host.Addr().Is4():
			return fmt.Errorf("cannot publish %s: net = user forwards from IPv4 addresses only: %w", p, ErrUnsupported)
		case p.Protocol == "udp" && noUDP != "":
			return fmt.Errorf("cannot publish %s: %s: %w", p, noUDP, ErrUnsupported)
		}
	}
	least := unprivilegedPorts()
	for _, p := range added {
		switch {
		case !hostAddress(p.Host.Addr(), broadcasts()):
			return fmt.Errorf("cannot publish %s: %s is not an address of this host: %w", p, p.Host.Addr(), ErrInvalid)
		case p.Host.Port() >= least:
		case owner != 0:
			return fmt.Errorf("cannot publish %s: ports below %d are root's, and the VM belongs to uid %d: %w", p, least, owner, ErrAccess)
		case c.Net == NetUser:
			return fmt.Errorf("cannot publish %s: with net = user the VMM binds the port, which has no right to those below %d: %w", p, least, ErrAccess)
		}
	}
	return nil
}

// hostAddress reports whether a host may have the address, which the kernel does not say of all that
// it binds. A link-local one would need a zone.
func hostAddress(a netip.Addr, broadcasts []netip.Addr) bool {
	switch {
	case a.IsUnspecified():
		return true
	case slices.Contains(broadcasts, a):
		return false
	case a.Is4():
		return a.As4()[0] != 0 && a.As4()[0] < 224
	}
	return !a.IsMulticast() && !a.IsLinkLocalUnicast()
}

// broadcasts returns the IPv4 broadcast addresses of the host's networks.
func broadcasts() []netip.Addr {
	networks, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var all []netip.Addr
	for _, n := range networks {
		prefix, err := netip.ParsePrefix(n.String())
		if err == nil && prefix.Addr().Is4() && prefix.Bits() < 31 {
			all = append(all, lastOf(prefix))
		}
	}
	return all
}

// lastOf returns the last address of an IPv4 network.
func lastOf(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	last := binary.BigEndian.Uint32(a[:]) | (1<<(32-p.Bits()) - 1)
	binary.BigEndian.PutUint32(a[:], last)
	return netip.AddrFrom4(a)
}

// claims are the published ports of all VMs, running or not: no two VMs have the same.
type claims struct {
	mu sync.Mutex
	of map[uint64][]Publication // guarded by mu
}

// take adds to a VM's claims, all or nothing. name is called with no lock held.
func (c *claims) take(serial uint64, added []Publication, name func(uint64) string) error {
	other, p, theirs := c.add(serial, added)
	if other == 0 {
		return nil
	}
	return fmt.Errorf("cannot publish %s: %s publishes %s: %w", p, name(other), theirs, ErrAddressInUse)
}

// add gives who has what of added already, 0 for nobody: then they are taken.
func (c *claims) add(serial uint64, added []Publication) (other uint64, p, theirs Publication) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range added {
		for other, all := range c.of {
			if i := slices.IndexFunc(all, p.Overlaps); other != serial && i >= 0 {
				return other, p, all[i]
			}
		}
	}
	c.of[serial] = append(slices.Clone(c.of[serial]), added...)
	return 0, p, theirs
}

// set makes all the VM's claims.
func (c *claims) set(serial uint64, all []Publication) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(all) == 0 {
		delete(c.of, serial)
		return
	}
	c.of[serial] = all
}
