package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/vmm"
)

// tablePrefix begins the names of our nftables tables: one of each of families.
const tablePrefix = "banger_"

// families that a table of ours may be in; version 0.1 of banger had one of family ip.
var families = []nftables.TableFamily{nftables.TableFamilyIPv4, inetFamily, bridgeFamily}

// elementsPerMessage keeps a list of elements below the 64 KiB of a netlink attribute.
const elementsPerMessage = 200

// maxGuests is how many a bridge has at most, those of the shortest prefix that is likely.
const maxGuests = 1 << 16

// element is what a guest has in one of sets.
type element struct{ set, key, value string }

// guest is what is in force for one VM.
type guest struct {
	vmm.Connection
	elements []element
	forwards []*forward
}

// elementsOf returns the elements that let a guest through. Maps lead clients of other hosts to it.
// Clients on the host use the forward's socket.
func (n *Network) elementsOf(c vmm.Connection) ([]element, error) {
	mac, err := net.ParseMAC(c.MAC)
	if err != nil || len(mac) != 6 || !c.Address.Is4() {
		return nil, fmt.Errorf("%w: a guest with the MAC %q and the address %s",
			vmm.ErrInvalid, c.MAC, c.Address)
	}
	tap := string(nameBytes(n.tapName(c.Serial)))
	hw := string(mac) + "\x00\x00"
	v4 := string(c.Address.AsSlice())
	all := []element{
		{"mac", tap + hw, ""},
		{"arp", tap + hw + v4, ""},
		{"arp", tap + hw + "\x00\x00\x00\x00", ""}, // asking whether an address is free
		{"ip4", tap + v4, ""},
		{"ip6", tap + string(linkLocal(mac).AsSlice()), ""},
	}
	v6 := n.Address6(c.Address)
	if v6.IsValid() {
		all = append(all, element{"ip6", tap + string(v6.Addr().AsSlice()), ""})
	}
	if !c.Isolate {
		all = append(all, element{"together", tap, ""})
	}
	if c.Limit.Tx != 0 {
		all = append(all, limitElement(n.tapName(c.Serial), c.Limit.Tx))
	}
	for _, p := range c.Publish {
		host := p.Host.Addr()
		if host.IsLoopback() {
			continue // no other host reaches it
		}
		family, to := "4", v4
		if host.Is6() {
			if !v6.IsValid() {
				continue
			}
			family, to = "6", string(v6.Addr().AsSlice())
		}
		outer, inner := protocolPort(p.Protocol, p.Host.Port()), protocolPort(p.Protocol, p.Guest)
		all = append(all, element{"open" + family, to + inner, ""})
		if host.IsUnspecified() {
			all = append(all, element{"publish" + family + "_any", outer, to + inner[4:]})
		} else {
			all = append(all, element{"publish" + family, string(host.AsSlice()) + outer, to + inner[4:]})
		}
	}
	return all, nil
}

// protocolPort is a protocol and a port as keys have them, each in four bytes.
func protocolPort(protocol string, port uint16) string {
	number := byte(unix.IPPROTO_TCP)
	if protocol == "udp" {
		number = unix.IPPROTO_UDP
	}
	return string(binary.BigEndian.AppendUint16([]byte{number, 0, 0, 0}, port)) + "\x00\x00"
}

// linkLocal is the address that a guest makes of its MAC (RFC 4291, appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2],
		11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

func (n *Network) table(family nftables.TableFamily) *nftables.Table {
	return &nftables.Table{Family: family, Name: tablePrefix + n.o.Bridge}
}

// apply replaces our tables at once by what is in force; n.mu is held.
func (n *Network) apply() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	// Added, deleted and added again in one batch: whatever was in it is replaced at once.
	for _, family := range []nftables.TableFamily{inetFamily, bridgeFamily} {
		c.AddTable(n.table(family))
		c.DelTable(n.table(family))
		c.AddTable(n.table(family))
	}
	for _, s := range sets {
		if err := c.AddSet(n.set(s), nil); err != nil {
			return err
		}
	}
	if n.o.NAT && !n.o.LAN {
		networks, err := n.otherNetworks()
		if err != nil {
			return err
		}
		for _, s := range []struct {
			name string
			key  nftables.SetDatatype
			v4   bool
		}{{"lan4", nftables.TypeIPAddr, true}, {"lan6", nftables.TypeIP6Addr, false}} {
			set := &nftables.Set{Table: n.table(inetFamily), Name: s.name, KeyType: s.key, Interval: true}
			err := c.AddSet(set, intervals(networks, s.v4))
			if err != nil {
				return err
			}
		}
	}
	for _, ch := range n.chains() {
		made := &nftables.Chain{Name: ch.name, Table: n.table(ch.family)}
		if ch.kind != "" {
			made.Type, made.Hooknum, made.Priority = ch.kind, &ch.hook, &ch.priority
		}
		c.AddChain(made)
		for _, exprs := range ch.rules {
			c.AddRule(&nftables.Rule{Table: made.Table, Chain: made, Exprs: exprs})
		}
	}
	all := make(map[element]bool)
	for _, g := range n.guests {
		for _, e := range g.elements {
			all[e] = true
		}
	}
	n.addLimits(c, all)
	if err := n.change(c, all, c.SetAddElements); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables refused the tables %s%s: %w", tablePrefix, n.o.Bridge, err)
	}
	if err := removeTables(n.o.Log, tablePrefix+n.o.Bridge, nftables.TableFamilyIPv4); err != nil {
		n.o.Log.Debug("tables of family ip not looked at", "err", err)
	}
	return nil
}

func (n *Network) set(s set) *nftables.Set {
	made := &nftables.Set{Table: n.table(s.family), Name: s.name, KeyType: s.key,
		Concatenation: strings.Contains(s.key.Name, " . "), KeyByteOrder: binaryutil.BigEndian}
	if s.meter {
		made.Dynamic, made.Size = true, maxGuests
	}
	if s.value.Name != "" {
		made.IsMap, made.DataType = true, s.value
	}
	return made
}

// change adds or deletes elements with do, as many in a message as it takes.
func (n *Network) change(c *nftables.Conn, all map[element]bool,
	do func(*nftables.Set, []nftables.SetElement) error) error {
	bySet := make(map[string][]nftables.SetElement)
	for e := range all {
		made := nftables.SetElement{Key: []byte(e.key), Val: []byte(e.value)}
		if e.set == limitMap {
			made.Val = nil
			made.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: e.value}
		}
		bySet[e.set] = append(bySet[e.set], made)
	}
	for _, s := range sets {
		for some := bySet[s.name]; len(some) > 0; {
			count := min(len(some), elementsPerMessage)
			if err := do(n.set(s), some[:count]); err != nil {
				return err
			}
			some = some[count:]
		}
	}
	return nil
}

// exchange replaces old by new in our tables in one step. Tables that somebody flushed are made again.
// n.mu is held.
func (n *Network) exchange(old, new []element) error {
	add, remove := make(map[element]bool), make(map[element]bool)
	for _, e := range new { // repeated if two published ports lead to one port of the guest
		add[e] = true
	}
	for _, e := range old {
		remove[e] = true
	}
	for e := range remove {
		if add[e] {
			delete(add, e)
			delete(remove, e)
		}
	}
	if len(add)+len(remove) == 0 || !n.settled {
		return nil
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	if err := n.change(c, remove, c.SetDeleteElements); err != nil {
		return err
	}
	n.removeLimits(c, remove)
	n.addLimits(c, add)
	if err := n.change(c, add, c.SetAddElements); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		if !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("nftables refused a change of the tables %s%s: %w",
				tablePrefix, n.o.Bridge, err)
		}
		return n.remake()
	}
	return nil
}

// otherNetworks are the private networks and those that this host has a route to, but for the default
// route.
func (n *Network) otherNetworks() ([]netip.Prefix, error) {
	all := append([]netip.Prefix(nil), private...)
	routes, err := n.routes()
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		all = append(all, r.to)
	}
	return all, nil
}

// route is one of another link than the bridge, and not a default route.
type route struct {
	to   netip.Prefix
	link string
}

func (n *Network) routes() ([]route, error) {
	var all []route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netlink.RouteList(nil, family)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the routes: %w", err)
		}
		for _, r := range list {
			if r.Dst == nil || r.Type != unix.RTN_UNICAST {
				continue
			}
			ip, ok := netip.AddrFromSlice(r.Dst.IP)
			bits, _ := r.Dst.Mask.Size()
			if ip = ip.Unmap(); !ok || bits == 0 || ip.IsLinkLocalUnicast() {
				continue
			}
			name := fmt.Sprintf("link %d", r.LinkIndex)
			if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
				name = l.Attrs().Name
			}
			if name != n.o.Bridge {
				all = append(all, route{netip.PrefixFrom(ip, bits), name})
			}
		}
	}
	return all, nil
}

// heldBy is how many connections one guest may have in a host's table of so many.
func heldBy(table string) uint32 {
	most, err := strconv.ParseUint(strings.TrimSpace(table), 10, 32)
	if err != nil {
		return maxHeld / 2 // not known before the kernel has loaded the tracking: of a small host
	}
	return uint32(max(1, min(maxHeld, most/heldShare)))
}

// sysctl writes a setting of the kernel unless it has that value.
func sysctl(value string, path ...string) error {
	name := filepath.Join(append([]string{"/proc/sys/net"}, path...)...)
	if b, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(b)) == value {
		return nil
	}
	return os.WriteFile(name, []byte(value+"\n"), 0)
}

// forwarding makes the host route, for good: others may rely on it by the daemon's end.
func (n *Network) forwarding() error {
	if err := sysctl("1", "ipv4", "ip_forward"); err != nil {
		return err
	}
	if !n.prefix6.IsValid() {
		return nil
	}
	// A host that forwards accepts router advertisements only where accept_ra is 2 (the kernel's
	// ip-sysctl). Links that accept them now go on.
	links, _ := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	for _, path := range links {
		b, err := os.ReadFile(path)
		link := filepath.Base(filepath.Dir(path))
		if err == nil && strings.TrimSpace(string(b)) == "1" && link != n.o.Bridge {
			if err := os.WriteFile(path, []byte("2\n"), 0); err != nil {
				return err
			}
		}
	}
	return sysctl("1", "ipv6", "conf", "all", "forwarding")
}

// removeTables removes our tables of that name and of those families.
func removeTables(log *slog.Logger, name string, of ...nftables.TableFamily) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	var errs []error
	for _, family := range of {
		tables, err := c.ListTablesOfFamily(family)
		if err != nil {
			return fmt.Errorf("cannot list the nftables tables: %w", err)
		}
		for _, t := range tables {
			if t.Name != name {
				continue
			}
			if err := removeTable(t); err != nil {
				errs = append(errs, fmt.Errorf("cannot remove the nftables table %s: %w", t.Name, err))
				continue
			}
			log.Info("removed nftables table", "table", t.Name)
		}
	}
	return errors.Join(errs...)
}
