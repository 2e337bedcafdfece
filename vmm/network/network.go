// Package network connects guests on Linux: one bridge, a tap per VM, masquerading where it is wished.
//
// Everything it makes can be told from everything else on the host: links carry an alias that
// begins with "banger:", the nftables table is named banger_<bridge>. Taps are not persistent, so that
// they vanish with the VMM that holds them. The package starts no goroutine and runs no program.
package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
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
	Bridge   string       // at most 8 bytes, so that taps can be named after it
	Prefix   netip.Prefix // IPv4; the host has its first address
	NAT      bool         // guests reach the world
	Instance string       // UUID of the state directory
	Log      *slog.Logger
}

// Network is the bridge of one daemon. Its methods may be called from many goroutines.
type Network struct {
	o  Options
	mu sync.Mutex // serialises the making of the bridge

	tapsMu sync.Mutex     // guards taps
	taps   map[int]uint64 // whose taps links are, by index; 0 for a link that is none of ours
}

var (
	_ vmm.Network     = (*Network)(nil)
	_ vmm.LinkStatser = (*Network)(nil)
)

// New makes the bridge, or takes over the one an earlier daemon of the same instance made, and sets
// up or removes its masquerading. It needs CAP_NET_ADMIN.
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
	n := &Network{o: o}
	if _, err := n.bridge(); err != nil {
		return nil, err
	}
	if err := n.nat(); err != nil {
		return nil, fmt.Errorf("cannot set up nat of %s: %w", o.Bridge, err)
	}
	return n, nil
}

// Check implements vmm.Network: every mode can be used.
func (n *Network) Check(mode vmm.NetMode) error { return nil }

// Prefix implements vmm.Network.
func (n *Network) Prefix() netip.Prefix { return n.o.Prefix }

// Gateway implements vmm.Network.
func (n *Network) Gateway() netip.Addr { return n.o.Prefix.Addr().Next() }

// tapName gives the name of a VM's tap.
func (n *Network) tapName(serial uint64) string {
	return n.o.Bridge + "-" + strconv.FormatUint(serial, 36)
}

// bridge finds or makes the bridge, with its address and up.
func (n *Network) bridge() (netlink.Link, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	alias := aliasMark + n.o.Instance
	link, err := netlink.LinkByName(n.o.Bridge)
	if err == nil {
		if link.Type() != "bridge" || link.Attrs().Alias != alias {
			return nil, fmt.Errorf("%w: the link %s exists and is not this daemon's (alias %q); choose another `bridge`, or run bangerd --cleanup if a lost state directory left it",
				vmm.ErrExists, n.o.Bridge, link.Attrs().Alias)
		}
	} else if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fmt.Errorf("cannot look for %s: %w", n.o.Bridge, err)
	}
	if err := n.clash(); err != nil {
		return nil, err
	}
	made := link == nil
	if made {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = n.o.Bridge
		link = &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(link); err != nil {
			return nil, fmt.Errorf("cannot make the bridge %s: %w", n.o.Bridge, err)
		}
	}
	if err := n.configure(link, alias); err != nil {
		if made {
			_ = netlink.LinkDel(link)
		}
		return nil, fmt.Errorf("cannot set up the bridge %s: %w", n.o.Bridge, err)
	}
	if made {
		n.o.Log.Info("bridge made", "bridge", n.o.Bridge, "subnet", n.o.Prefix)
	}
	return link, nil
}

func (n *Network) configure(link netlink.Link, alias string) error {
	if err := netlink.LinkSetAlias(link, alias); err != nil {
		return err
	}
	want := netip.PrefixFrom(n.Gateway(), n.o.Prefix.Bits()).String()
	has, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for i := range has {
		if has[i].IPNet.String() != want { // of an earlier `subnet`
			if err := netlink.AddrDel(link, &has[i]); err != nil {
				return err
			}
		}
	}
	addr, err := netlink.ParseAddr(want)
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return err
	}
	// Without spanning tree a port forwards at once; with it, only after the delay.
	delay := filepath.Join("/sys/class/net", n.o.Bridge, "bridge/forward_delay")
	if err := os.WriteFile(delay, []byte("0"), 0); err != nil {
		n.o.Log.Debug("forward delay not set", "bridge", n.o.Bridge, "err", err)
	}
	return netlink.LinkSetUp(link)
}

// clash finds a route of another link that overlaps the subnet: the host would not reach the guests, or lose what it reaches now.
func (n *Network) clash() error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("cannot read the routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		bits, _ := r.Dst.Mask.Size()
		if !ok || bits == 0 || !netip.PrefixFrom(ip, bits).Overlaps(n.o.Prefix) {
			continue
		}
		name := strconv.Itoa(r.LinkIndex)
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			name = l.Attrs().Name
		}
		if name != n.o.Bridge {
			return fmt.Errorf("%w: the subnet %s overlaps the route %s of %s; choose another `subnet` in the configuration", vmm.ErrExists, n.o.Prefix, r.Dst, name)
		}
	}
	return nil
}

// Tap implements vmm.Network. The caller closes the file; a bridge that somebody removed is made again.
func (n *Network) Tap(ctx context.Context, serial uint64, uuid string) (*os.File, error) {
	name := n.tapName(serial)
	if len(name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("%w: the name %s of the tap is too long; choose a shorter `bridge`", vmm.ErrInvalid, name)
	}
	bridge, err := n.bridge()
	if err != nil {
		return nil, err
	}
	f, err := n.tap(bridge, name, uuid)
	if err != nil {
		return nil, fmt.Errorf("cannot make the tap %s: %w", name, err)
	}
	return f, nil
}

func (n *Network) tap(bridge netlink.Link, name, uuid string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	// Blocking, so that the runtime's poller leaves it alone: only the VMM reads it.
	f := os.NewFile(uintptr(fd), "/dev/net/tun")
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetAlias(link, aliasMark+n.o.Instance+":"+uuid)
	}
	if err == nil {
		err = netlink.LinkSetMaster(link, bridge)
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// Release removes the bridge and the table of NAT when no guest uses them any more: at the end of a daemon that leaves no VM running.
func (n *Network) Release() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	bridge, err := netlink.LinkByName(n.o.Bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot look for %s: %w", n.o.Bridge, err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("cannot list the links: %w", err)
	}
	for _, l := range links {
		if l.Attrs().MasterIndex == bridge.Attrs().Index {
			return nil
		}
	}
	if err := netlink.LinkDel(bridge); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("cannot remove %s: %w", n.o.Bridge, err)
	}
	if !n.o.NAT {
		return nil
	}
	return removeTables(n.o.Log, tablePrefix+n.o.Bridge)
}

// unprivileged has no bridge, and says why.
type unprivileged struct{ why error }

// Unprivileged is the network of a daemon without privileges: user networking by the VMM, or none.
func Unprivileged() vmm.Network {
	return Without(errors.New("it needs a daemon that runs as root"))
}

// Without is the network of a daemon that could not have its bridge: user networking by the VMM, or none.
func Without(why error) vmm.Network { return unprivileged{why} }

func (u unprivileged) Check(mode vmm.NetMode) error {
	if mode == vmm.NetBridge {
		return fmt.Errorf("%w: no net = bridge here, use `user` or `none`: %v", vmm.ErrNotPermitted, u.why)
	}
	return nil
}
func (unprivileged) Prefix() netip.Prefix { return netip.Prefix{} }
func (unprivileged) Gateway() netip.Addr  { return netip.Addr{} }
func (u unprivileged) Tap(context.Context, uint64, string) (*os.File, error) {
	return nil, u.Check(vmm.NetBridge)
}

// Cleanup removes every link and table that banger ever made in this network namespace, whatever state directory
// it belonged to, and logs each. Taps that a living VMM holds go too. It goes on after an error and gives them all.
func Cleanup(log *slog.Logger) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("cannot list the links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if !strings.HasPrefix(l.Attrs().Alias, aliasMark) {
			continue
		}
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("cannot remove %s: %w", l.Attrs().Name, err))
			continue
		}
		log.Info("removed link", "link", l.Attrs().Name, "alias", l.Attrs().Alias)
	}
	return errors.Join(append(errs, removeTables(log, tablePrefix))...)
}
