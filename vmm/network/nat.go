package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tablePrefix begins the names of our nftables tables, all of family ip.
const tablePrefix = "banger_"

const ipForward = "/proc/sys/net/ipv4/ip_forward"

// nat makes the table when nat is on and removes it when it is off.
func (n *Network) nat() error {
	name := tablePrefix + n.o.Bridge
	if !n.o.NAT {
		if err := removeTables(n.o.Log, name); err != nil {
			n.o.Log.Debug("nftables not looked at", "err", err) // a kernel without it has no table of ours either
		}
		return nil
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	// Added, deleted and added again in one batch: whatever was in it is replaced at once.
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: name}
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	chain := c.AddChain(&nftables.Chain{Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	ifname := make([]byte, unix.IFNAMSIZ)
	copy(ifname, n.o.Bridge)
	base := n.o.Prefix.Addr().As4()
	// ip saddr PREFIX oifname != BRIDGE masquerade
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: net.CIDRMask(n.o.Prefix.Bits(), 32), Xor: binaryutil.NativeEndian.PutUint32(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: base[:]},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: ifname},
		&expr.Masq{},
	}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables refused the table %s: %w", name, err)
	}
	if b, err := os.ReadFile(ipForward); err == nil && strings.TrimSpace(string(b)) == "1" {
		return nil
	}
	return os.WriteFile(ipForward, []byte("1\n"), 0)
}

// removeTables removes our table of that name, or all of ours when it is tablePrefix.
func removeTables(log *slog.Logger, name string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("cannot list the nftables tables: %w", err)
	}
	var errs []error
	for _, t := range tables {
		if t.Name != name && (name != tablePrefix || !strings.HasPrefix(t.Name, tablePrefix)) {
			continue
		}
		c.DelTable(t)
		if err := c.Flush(); err != nil {
			errs = append(errs, fmt.Errorf("cannot remove the nftables table %s: %w", t.Name, err))
			continue
		}
		log.Info("removed nftables table", "table", t.Name)
	}
	return errors.Join(errs...)
}
