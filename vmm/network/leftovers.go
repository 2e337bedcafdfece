package network

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Leftover is a link or a table that a daemon of banger made in this network namespace.
type Leftover struct {
	Instance string // the daemon's state directory's; empty if nothing tells it
	Text     string // what it is, for people
	Remove   func() error
}

// Leftovers finds all that daemons of banger, living or not, made in this network namespace.
func Leftovers() ([]Leftover, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("cannot list the links: %w", err)
	}
	var all []Leftover
	bridges := make(map[string]string) // instances by name
	for _, l := range links {
		alias, ours := strings.CutPrefix(l.Attrs().Alias, aliasMark)
		if !ours {
			continue
		}
		instance, _, tap := strings.Cut(alias, ":") // a tap's goes on with its VM's UUID
		if !tap {
			bridges[l.Attrs().Name] = instance
		}
		text := "link " + l.Attrs().Name
		all = append(all, Leftover{instance, text, func() error { return removeLink(l) }})
	}
	tables, err := tableLeftovers(bridges)
	return append(all, tables...), err
}

func tableLeftovers(bridges map[string]string) ([]Leftover, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	var all []Leftover
	for _, family := range families {
		tables, err := c.ListTablesOfFamily(family)
		if err != nil {
			return nil, fmt.Errorf("cannot list the nftables tables: %w", err)
		}
		chains, err := c.ListChainsOfTableFamily(family)
		if err != nil {
			return nil, fmt.Errorf("cannot list the nftables chains: %w", err)
		}
		for _, t := range tables {
			bridge, ours := strings.CutPrefix(t.Name, tablePrefix)
			if !ours {
				continue
			}
			instance := bridges[bridge] // of a table that an earlier version made
			for _, ch := range chains {
				if id, is := strings.CutPrefix(ch.Name, instancePrefix); is && ch.Table.Name == t.Name {
					instance = strings.ReplaceAll(id, "_", "-")
				}
			}
			text := "nftables table " + t.Name + ", family " + familyNames[family]
			all = append(all, Leftover{instance, text, func() error { return removeTable(t) }})
		}
	}
	return all, nil
}

var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", inetFamily: "inet", bridgeFamily: "bridge",
}

// removeLink removes a link if it is still the one that was found.
func removeLink(found netlink.Link) error {
	l, err := netlink.LinkByIndex(found.Attrs().Index)
	if errors.As(err, new(netlink.LinkNotFoundError)) ||
		err == nil && l.Attrs().Alias != found.Attrs().Alias {
		return nil // a tap goes with its process
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

func removeTable(t *nftables.Table) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.DelTable(t)
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// instancePrefix begins the name of a chain without rules that tells whose a table is.
const instancePrefix = "instance_"

func (n *Network) instanceChain() string {
	return instancePrefix + strings.ReplaceAll(n.o.Instance, "-", "_")
}
