// Package network connects guests on Linux: one bridge, a tap for each VM, and the reach of guests.
//
// All that it makes is marked. Links have an alias that begins with "banger:". The nftables tables are
// named banger_<bridge>, one of family inet and one of family bridge. Taps are not persistent, so that
// they vanish with their VMM. The policy is in rules.go. Each guest's part of it is elements of sets
// (filter.go). A goroutine restores deleted rules from Settle to Release (watch.go). Sockets hold the
// published ports, and their goroutines serve the host's own clients (forward.go). Disconnect and
// Release end them. The package runs no program.
package network

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/vmm"
)

// aliasMark begins the alias of every link that banger makes.
const aliasMark = "banger:"

// Options of a Network.
type Options struct {
	Bridge  string       // at most 8 bytes, so that taps can be named after it
	Prefix  netip.Prefix // IPv4; the host has its first address
	Prefix6 netip.Prefix // IPv6, /64; invalid for none
	NAT     bool         // guests reach the world
	LAN     bool         // with NAT also the host's other networks, and private ones
	// GuestToHost lets guests reach services on the host. Without it they reach the gateway's DNS and
	// echo only.
	GuestToHost bool
	Uplink      string // the link to the world, and guests leave by no other; empty: the default route's
	MTU         int    // bytes; 0 for the uplink's
	Instance    string // UUID of the state directory
	Log         *slog.Logger
}

// Network is the bridge of one daemon. Its methods may be called from many goroutines.
type Network struct {
	o       Options      // immutable, as are the next three
	prefix6 netip.Prefix // o.Prefix6, invalid where the host has no IPv6
	mtu     int
	held    uint32 // how many tracked connections each guest may have

	mu      sync.Mutex        // held during changes of the bridge and the tables; guards the next two
	settled bool              // the tables are ours
	guests  map[uint64]*guest // by serial

	// unwatch ends the goroutine that restores rules; nil without one. Only Settle and Release use it,
	// which never run at once.
	unwatch func()

	tapsMu sync.Mutex     // guards taps
	taps   map[int]uint64 // the VM's serial by a link's index, 0 for a foreign link
}

var _ vmm.Network = (*Network)(nil)

// New makes the bridge, or takes over that of an earlier daemon of the same instance. It replaces the
// tables at once if there is no guest. Otherwise Settle does, so that running guests are not cut off.
// It needs CAP_NET_ADMIN. vmm.ErrInvalid for impossible options.
func New(o Options) (*Network, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	o.Prefix = o.Prefix.Masked()
	if len(o.Bridge) == 0 || len(o.Bridge) > 8 || strings.ContainsAny(o.Bridge, "/ :%") {
		return nil, fmt.Errorf("%w: the bridge's name %q is not 1 to 8 plain characters", vmm.ErrInvalid, o.Bridge)
	}
	if !o.Prefix.Addr().Is4() || o.Prefix.Bits() > 30 {
		return nil, fmt.Errorf("%w: the subnet %s is not of IPv4 and at most /30", vmm.ErrInvalid, o.Prefix)
	}
	if o.Prefix6.IsValid() && (!o.Prefix6.Addr().Is6() || o.Prefix6.Bits() != 64) {
		return nil, fmt.Errorf("%w: the subnet6 %s is not a /64 of IPv6", vmm.ErrInvalid, o.Prefix6)
	}
	table, _ := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	n := &Network{o: o, guests: make(map[uint64]*guest), held: heldBy(string(table))}
	var err error
	if n.mtu, err = n.chooseMTU(); err != nil {
		return nil, err
	}
	if o.Prefix6.IsValid() {
		if why := withoutIPv6(n.mtu); why != "" {
			o.Log.Info("guests get no IPv6", "because", why)
		} else {
			n.prefix6 = o.Prefix6.Masked()
		}
	}
	if _, err := n.bridge(); err != nil {
		return nil, err
	}
	if n.o.NAT {
		if err := n.forwarding(); err != nil {
			return nil, fmt.Errorf("cannot let the host route: %w", err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if used, err := n.used(); err != nil || used {
		return n, err
	}
	if err := n.apply(); err != nil {
		return nil, fmt.Errorf("cannot filter what guests send (modprobe nf_tables): %w", err)
	}
	n.settled = true
	return n, nil
}

// Settle implements vmm.Network. From then until Release, deleted rules are restored.
func (n *Network) Settle() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.watch(); err != nil {
		return err
	}
	if err := n.apply(); err != nil {
		return fmt.Errorf("cannot filter what guests send: %w", err)
	}
	n.settled = true
	return nil
}

// withoutIPv6 says why there can be no IPv6 on the bridge, empty if there can.
func withoutIPv6(mtu int) string {
	if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/default/disable_ipv6"); err != nil || strings.TrimSpace(string(b)) != "0" {
		return "this host has none"
	}
	if mtu < leastMTU6 {
		return fmt.Sprintf("the MTU %d is below %d", mtu, leastMTU6)
	}
	return ""
}

const (
	leastMTU6  = 1280 // RFC 8200
	defaultMTU = 1500
)

// chooseMTU gives the MTU asked for, else that of the uplink.
func (n *Network) chooseMTU() (int, error) {
	if n.o.MTU != 0 {
		if n.o.MTU < 576 || n.o.MTU > 65521 {
			return 0, fmt.Errorf("%w: the mtu %d is not 576 to 65521 bytes", vmm.ErrInvalid, n.o.MTU)
		}
		return n.o.MTU, nil
	}
	if n.o.Uplink != "" {
		l, err := netlink.LinkByName(n.o.Uplink)
		if err != nil {
			n.o.Log.Warn("the uplink is not there", "uplink", n.o.Uplink, "err", err)
			return defaultMTU, nil
		}
		return min(l.Attrs().MTU, 65521), nil
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return 0, fmt.Errorf("cannot read the routes: %w", err)
	}
	best, metric := defaultMTU, -1
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() || metric >= 0 && r.Priority >= metric {
			continue
		}
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			best, metric = min(l.Attrs().MTU, 65521), r.Priority
		}
	}
	return best, nil
}

// used reports whether there are taps in the bridge; n.mu is held.
func (n *Network) used() (bool, error) {
	bridge, err := netlink.LinkByName(n.o.Bridge)
	if err != nil {
		return false, fmt.Errorf("cannot look for %s: %w", n.o.Bridge, err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		return false, fmt.Errorf("cannot list the links: %w", err)
	}
	for _, l := range links {
		if l.Attrs().MasterIndex == bridge.Attrs().Index {
			return true, nil
		}
	}
	return false, nil
}

// Connect implements vmm.Network.
func (n *Network) Connect(c vmm.Connection) error {
	elements, err := n.elementsOf(c)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(elements, func(e element) bool { return strings.HasPrefix(e.set, "open") }) {
		if err := n.forwarding(); err != nil {
			return fmt.Errorf("cannot let the host route: %w", err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	old, known := n.guests[c.Serial]
	if !known {
		old = new(guest)
	}
	now := &guest{Connection: c, elements: elements}
	var opened, closed []*forward // that now has and old has not, and the other way round
	for _, f := range old.forwards {
		if slices.Contains(c.Publish, f.Publication) && f.to.Addr() == c.Address {
			now.forwards = append(now.forwards, f)
		} else {
			closed = append(closed, f)
		}
	}
	undo := func() {
		for _, f := range opened {
			f.Close()
		}
		for i, f := range old.forwards {
			if !f.isClosed() {
				continue
			}
			again, err := openForward(f.Publication, f.to.Addr(), n.isGuest)
			if err != nil {
				n.o.Log.Error("a published port was lost", "port", f.Publication, "err", err)
				continue
			}
			old.forwards[i] = again
		}
	}
	for _, p := range c.Publish {
		if slices.ContainsFunc(now.forwards, func(f *forward) bool { return f.Publication == p }) {
			continue
		}
		for _, f := range closed {
			if f.Overlaps(p) { // the same socket for another port of the guest
				f.Close()
			}
		}
		f, err := openForward(p, c.Address, n.isGuest)
		if err != nil {
			undo()
			return err
		}
		opened = append(opened, f)
	}
	unshape, err := n.reshape(&c, old.Limit)
	if err != nil {
		undo()
		return err
	}
	n.guests[c.Serial] = now
	if err := n.exchange(old.elements, elements); err != nil {
		unshape()
		if n.guests[c.Serial] = old; !known {
			delete(n.guests, c.Serial)
		}
		undo()
		return err
	}
	for _, f := range closed {
		f.Close()
	}
	now.forwards = append(now.forwards, opened...)
	return nil
}

// isGuest reports whether a guest may have the address. Guests may not reach others by published ports.
func (n *Network) isGuest(a netip.Addr) bool {
	inside := n.o.Prefix.Contains(a) || n.prefix6.IsValid() && n.prefix6.Contains(a)
	return inside && a != n.Gateway() && a != n.Gateway6()
}

// Disconnect implements vmm.Network.
func (n *Network) Disconnect(serial uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	g := n.guests[serial]
	if g == nil {
		return
	}
	delete(n.guests, serial)
	for _, f := range g.forwards {
		f.Close()
	}
	if err := n.exchange(g.elements, nil); err != nil {
		n.o.Log.Error("rules of a guest that is gone are left", "tap", n.tapName(serial), "err", err)
	}
}

// Address6 implements vmm.Network. The guest has the same place in both subnets.
func (n *Network) Address6(address netip.Addr) netip.Prefix {
	if !n.prefix6.IsValid() || !address.Is4() {
		return netip.Prefix{}
	}
	base, at, to := n.o.Prefix.Addr().As4(), address.As4(), n.prefix6.Addr().As16()
	place := binary.BigEndian.Uint32(at[:]) - binary.BigEndian.Uint32(base[:])
	binary.BigEndian.PutUint32(to[12:], place)
	return netip.PrefixFrom(netip.AddrFrom16(to), n.prefix6.Bits())
}

// Gateway6 implements vmm.Network.
func (n *Network) Gateway6() netip.Addr { return n.Address6(n.Gateway()).Addr() }

// MTU implements vmm.Network.
func (n *Network) MTU() int { return n.mtu }

// LocalPrefix6 derives a /64 of a unique local prefix (RFC 4193: fd and 40 random bits) from the random
// UUID of the state directory. It is the same at every start.
func LocalPrefix6(instance string) netip.Prefix {
	sum := sha256.Sum256([]byte("banger subnet6 " + instance))
	address := [16]byte{0: 0xfd}
	copy(address[1:6], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(address), 64)
}

// Check implements vmm.Network: every mode can be used.
func (n *Network) Check(mode vmm.NetMode) error { return nil }

// Prefix implements vmm.Network.
func (n *Network) Prefix() netip.Prefix { return n.o.Prefix }

// Gateway implements vmm.Network.
func (n *Network) Gateway() netip.Addr { return n.o.Prefix.Addr().Next() }

// Release stops restoring rules and serving published ports to the host's own clients. It removes the
// bridge and the tables if no guest uses them: at the end of a daemon that leaves no VM running.
func (n *Network) Release() error {
	if n.unwatch != nil {
		n.unwatch()
		n.unwatch = nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, g := range n.guests {
		for _, f := range g.forwards {
			f.Close()
		}
	}
	bridge, err := netlink.LinkByName(n.o.Bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot look for %s: %w", n.o.Bridge, err)
	}
	if used, err := n.used(); err != nil || used {
		return err
	}
	if err := netlink.LinkDel(bridge); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("cannot remove %s: %w", n.o.Bridge, err)
	}
	return removeTables(n.o.Log, tablePrefix+n.o.Bridge, families...)
}
