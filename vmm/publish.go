package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// maxPublish bounds the published ports of one VM.
const maxPublish = 64

// Publication is a socket of the host that leads to a port of a guest: one line of `publish`.
type Publication struct {
	Protocol string         // tcp or udp
	Host     netip.AddrPort // 0.0.0.0 and :: are all addresses of their own family
	Guest    uint16
}

// String returns the canonical form, HOST:PORT:GUESTPORT/PROTO.
func (p Publication) String() string {
	return fmt.Sprintf("%s:%d/%s", p.Host, p.Guest, p.Protocol)
}

// Overlaps reports whether one socket of the host cannot serve both.
func (p Publication) Overlaps(q Publication) bool {
	a, b := p.Host.Addr(), q.Host.Addr()
	return p.Protocol == q.Protocol && p.Host.Port() == q.Host.Port() && a.Is4() == b.Is4() &&
		(a == b || a.IsUnspecified() || b.IsUnspecified())
}

// Near returns the address at which a client on the host itself connects.
func (p Publication) Near() netip.AddrPort {
	switch p.Host.Addr() {
	case netip.IPv4Unspecified():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.Host.Port())
	case netip.IPv6Unspecified():
		return netip.AddrPortFrom(netip.IPv6Loopback(), p.Host.Port())
	}
	return p.Host
}

// ParsePublications reads lines [HOST:]PORT:GUESTPORT[/PROTO]. HOST is 127.0.0.1 by default, and
// PROTO is tcp. ErrInvalid.
func ParsePublications(text string) ([]Publication, error) {
	var all []Publication
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		p, err := parsePublication(line)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(all, p.Overlaps); i >= 0 {
			return nil, fmt.Errorf("%s and %s want the same port of the host: %w",
				all[i], p, ErrInvalid)
		}
		if all = append(all, p); len(all) > maxPublish {
			return nil, fmt.Errorf("a VM has at most %d published ports: %w",
				maxPublish, ErrInvalid)
		}
	}
	return all, nil
}

func parsePublication(line string) (p Publication, err error) {
	bad := func(why string) (Publication, error) {
		const form = "HOST:PORT:GUESTPORT/PROTO, as 127.0.0.1:8080:80/tcp"
		return Publication{}, fmt.Errorf("%.128q is not %s: %s: %w", line, form, why, ErrInvalid)
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

// formatPublications returns the canonical text of Config.Publish.
func formatPublications(all []Publication) string {
	lines := make([]string, len(all))
	for i, p := range all {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Publications parses Publish, which holds only text that was parsed before.
func (c *Config) Publications() []Publication {
	all, _ := ParsePublications(c.Publish)
	return all
}

// SocketError turns the error of binding a published port into one of vmm's.
func SocketError(p Publication, err error) error {
	kind := err
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		kind = ErrAddressInUse
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		kind = ErrAccess
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return notHere(p)
	}
	return fmt.Errorf("cannot publish %s: %w", p, kind)
}

func cannotPublish(p Publication, kind error, format string, args ...any) error {
	return fmt.Errorf("cannot publish %s: %s: %w", p, fmt.Sprintf(format, args...), kind)
}

func notHere(p Publication) error {
	return cannotPublish(p, ErrInvalid, "%s is not an address of this host", p.Host.Addr())
}

// probe binds each socket and closes it again. It returns the first failure.
func probe(all []Publication) error {
	for _, p := range all {
		family := "6"
		if p.Host.Addr().Is4() {
			family = "4"
		}
		var socket io.Closer
		var err error
		if p.Protocol == "udp" {
			socket, err = net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(p.Host))
		} else {
			socket, err = net.ListenTCP("tcp"+family, net.TCPAddrFromAddrPort(p.Host))
		}
		if err == nil {
			err = socket.Close()
		}
		if err != nil {
			return SocketError(p, err)
		}
	}
	return nil
}

// unprivilegedPorts returns the first port that everybody may bind: ip_unprivileged_port_start of
// ip(7).
func unprivilegedPorts() uint16 {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	n, perr := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 16)
	if err != nil || perr != nil {
		return 1024
	}
	return uint16(n)
}

// without returns those of all that are not in some.
func without(all, some []Publication) []Publication {
	return slices.DeleteFunc(slices.Clone(all), func(p Publication) bool {
		return slices.Contains(some, p)
	})
}

// checkPublish refuses publications that the network mode, the driver or the owner does not allow.
// Only the added ones must be addresses of this host.
func checkPublish(c *Config, driver Driver, owner uint32, all, added []Publication) error {
	if len(all) > 0 && c.Net == NetNone {
		return fmt.Errorf("a VM with net = none has no ports to publish: %w", ErrInvalid)
	}
	noUDP := driver.Capabilities().Lack(FeatureUDP)
	for _, p := range all {
		switch {
		case c.Net != NetUser:
		case !p.Host.Addr().Is4():
			return fmt.Errorf("cannot publish %s: net = user forwards from IPv4 addresses only: %w",
				p, ErrUnsupported)
		case p.Protocol == "udp" && noUDP != "":
			return fmt.Errorf("cannot publish %s: %s: %w", p, noUDP, ErrUnsupported)
		}
	}
	least := unprivilegedPorts()
	for _, p := range added {
		switch {
		case !hostAddress(p.Host.Addr(), broadcasts()):
			return notHere(p)
		case p.Host.Port() >= least:
		case owner != 0:
			return cannotPublish(p, ErrAccess,
				"ports below %d are root's, and the VM belongs to uid %d", least, owner)
		case c.Net == NetUser:
			return cannotPublish(p, ErrAccess,
				"with net = user the VMM binds the port, which has no right to those below %d",
				least)
		}
	}
	return nil
}

// hostAddress reports whether a host may have the address. The kernel binds some that no host has.
// A link-local address would need a zone.
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

// claims hold the published ports of all VMs, running or not. No two VMs have the same.
type claims struct {
	mu sync.Mutex
	of map[uint64][]Publication // by serial; guarded by mu
}

// take adds to a VM's claims, all or nothing. It calls name without a lock. ErrAddressInUse.
func (c *claims) take(serial uint64, added []Publication, name func(uint64) string) error {
	other, p, theirs := c.add(serial, added)
	if other == 0 {
		return nil
	}
	return cannotPublish(p, ErrAddressInUse, "%s publishes %s", name(other), theirs)
}

// add returns the serial of a VM that claims one of added, with both claims. If it returns 0, all
// of added are claimed now.
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

// set replaces the VM's claims.
func (c *claims) set(serial uint64, all []Publication) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(all) == 0 {
		delete(c.of, serial)
		return
	}
	c.of[serial] = all
}
