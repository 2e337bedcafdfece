package doctor

import (
	"errors"
	"fmt"

	"banger/internal/host"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// errNoNamespace: this process may make no network to try something in.
var errNoNamespace = errors.New("no network namespace can be made to try it in")

// tryNft makes tables of the kinds that the daemon uses, in a network namespace that ends with it,
// and removes them. The rules of the host stay as they are.
func tryNft() error {
	return host.OnOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("%w: %w", errNoNamespace, err)
		}
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		var tables []*nftables.Table
		for _, family := range []nftables.TableFamily{
			nftables.TableFamilyINet, nftables.TableFamilyBridge,
		} {
			table := conn.AddTable(&nftables.Table{Family: family, Name: "banger_doctor"})
			conn.AddChain(&nftables.Chain{Name: "forward", Table: table,
				Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
				Priority: nftables.ChainPriorityFilter})
			tables = append(tables, table)
		}
		nat := conn.AddChain(&nftables.Chain{Name: "nat", Table: tables[0],
			Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
			Priority: nftables.ChainPriorityNATSource})
		conn.AddRule(&nftables.Rule{Table: tables[0], Chain: nat,
			Exprs: []expr.Any{&expr.Counter{}, &expr.Masq{}}})
		if err := conn.Flush(); err != nil {
			return err
		}
		for _, table := range tables {
			conn.DelTable(table)
		}
		return conn.Flush()
	})
}
