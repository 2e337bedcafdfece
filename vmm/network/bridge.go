package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/vmm"
)

// bridge finds or makes the bridge, with its address and up.
func (n *Network) bridge() (netlink.Link, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	alias := aliasMark + n.o.Instance
	link, err := netlink.LinkByName(n.o.Bridge)
	if err == nil {
		if link.Type() != "bridge" || link.Attrs().Alias != alias {
			return nil, fmt.Errorf("%w: the link %s exists and is not this daemon's (alias %q); "+
				"choose another `bridge`, or run `bangerd --cleanup --all` "+
				"if a lost state directory left it",
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
	if err := n.configure6(link); err != nil {
		return err
	}
	if link.Attrs().MTU != n.mtu {
		if err := netlink.LinkSetMTU(link, n.mtu); err != nil {
			return fmt.Errorf("mtu %d: %w", n.mtu, err)
		}
	}
	// Without spanning tree a port forwards at once; with it, only after the delay.
	delay := filepath.Join("/sys/class/net", n.o.Bridge, "bridge/forward_delay")
	if err := os.WriteFile(delay, []byte("0"), 0); err != nil {
		n.o.Log.Debug("forward delay not set", "bridge", n.o.Bridge, "err", err)
	}
	return netlink.LinkSetUp(link)
}

// configure6 sets the bridge's IPv6 address, usable before a port is up, and ignores routers behind it.
func (n *Network) configure6(link netlink.Link) error {
	has, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil && n.prefix6.IsValid() {
		return err
	}
	want := ""
	if n.prefix6.IsValid() {
		want = netip.PrefixFrom(n.Gateway6(), n.prefix6.Bits()).String()
	}
	for i := range has {
		if has[i].IPNet.String() != want && !has[i].IP.IsLinkLocalUnicast() { // of an earlier `subnet6`
			if err := netlink.AddrDel(link, &has[i]); err != nil {
				return err
			}
		}
	}
	if want == "" {
		return nil
	}
	for _, name := range []string{"accept_ra", "autoconf"} {
		if err := sysctl("0", "ipv6", "conf", n.o.Bridge, name); err != nil {
			return err
		}
	}
	addr, err := netlink.ParseAddr(want)
	if err != nil {
		return err
	}
	addr.Flags = unix.IFA_F_NODAD
	return netlink.AddrReplace(link, addr)
}

// clash refuses a subnet that overlaps a route of another link. The host would not reach the guests,
// or lose that route's network.
func (n *Network) clash() error {
	routes, err := n.routes()
	if err != nil {
		return err
	}
	for _, r := range routes {
		for _, s := range []struct {
			setting string
			prefix  netip.Prefix
		}{{"subnet", n.o.Prefix}, {"subnet6", n.prefix6}} {
			if s.prefix.IsValid() && r.to.Overlaps(s.prefix) {
				return fmt.Errorf("%w: the %s %s overlaps the route %s of %s; choose another `%s` in the configuration",
					vmm.ErrExists, s.setting, s.prefix, r.to, r.link, s.setting)
			}
		}
	}
	return nil
}
