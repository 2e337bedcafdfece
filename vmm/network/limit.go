package network

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/vmm"
)

// What a guest sends is counted by a rule in a chain of its own, to which a map leads from the name
// of its tap: packets beyond the rate are dropped. What it receives waits in a queue of its tap
// (tc-tbf(8)), which belongs to the tap and ends with it.

// limitMap is the map of guests that may send so much only.
const limitMap = "limit"

// limitElement is the element of a guest's tap in limitMap. The name of the chain has the rate, so
// that another rate is another chain.
func limitElement(tap string, tx int64) element {
	chain := limitMap + "_" + tap + "_" + strconv.FormatInt(tx, 10)
	return element{limitMap, string(nameBytes(tap)), chain}
}

// rateOf returns the rate in the name of a guest's chain, bytes a second.
func rateOf(chain string) uint64 {
	rate, _ := strconv.ParseUint(chain[strings.LastIndexByte(chain, '_')+1:], 10, 63) // limitElement's
	return rate
}

// leastBurst holds the largest packet that a guest hands over, before it is cut into frames.
const leastBurst = 128 << 10

// addLimits adds the chains of elements of limitMap, before the elements.
func (n *Network) addLimits(c *nftables.Conn, all map[element]bool) {
	for e := range all {
		if e.set != limitMap {
			continue
		}
		chain := &nftables.Chain{Name: e.value, Table: n.table(bridgeFamily)}
		c.AddChain(chain)
		over := &expr.Limit{Type: expr.LimitTypePktBytes, Rate: rateOf(e.value),
			Unit: expr.LimitTimeSecond, Burst: leastBurst, Over: true}
		c.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: rule(match{over}, drop)})
	}
}

// removeLimits removes the chains of elements of limitMap, after the elements.
func (n *Network) removeLimits(c *nftables.Conn, all map[element]bool) {
	for e := range all {
		if e.set == limitMap {
			c.DelChain(&nftables.Chain{Name: e.value, Table: n.table(bridgeFamily)})
		}
	}
}

// limited leads a packet of a limited guest through its chain.
var limited = match{&expr.Lookup{SourceRegister: r0, IsDestRegSet: true, SetName: limitMap}}

// shape lets a guest receive that many bytes a second, any for 0.
func (n *Network) shape(link netlink.Link, rx int64) error {
	attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT,
		Handle: netlink.MakeHandle(1, 0)}
	if rx == 0 {
		err := netlink.QdiscDel(&netlink.Tbf{QdiscAttrs: attrs})
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // it has the kernel's own
			return nil
		}
		return err
	}
	rate := uint64(rx)
	burst := max(rate/20, uint64(n.mtu)+1024, 16<<10) // 50 ms
	wait := max(rate/10, 64<<10)                      // 100 ms
	err := netlink.QdiscReplace(&netlink.Tbf{QdiscAttrs: attrs, Rate: rate,
		Buffer: netlink.Xmittime(rate, uint32(burst)), Limit: uint32(burst + wait)})
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: the kernel has no tbf (modprobe sch_tbf)", vmm.ErrUnsupported)
	}
	return err
}

// reshape shapes the tap of a guest, if there is one, and returns how that is undone. Where an
// earlier daemon may have shaped it, whatever that left is replaced. n.mu is held.
func (n *Network) reshape(c *vmm.Connection, old vmm.NetMax) (undo func(), err error) {
	undo = func() {}
	if c.Limit.Rx == old.Rx && n.settled {
		return undo, nil
	}
	link, err := netlink.LinkByName(n.tapName(c.Serial))
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return undo, nil // Tap does it
	}
	if err == nil {
		err = n.shape(link, c.Limit.Rx)
	}
	if err != nil {
		return undo, fmt.Errorf("cannot limit what its tap %s receives: %w", n.tapName(c.Serial), err)
	}
	return func() { _ = n.shape(link, old.Rx) }, nil
}
