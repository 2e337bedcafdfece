package network

import (
	"encoding/binary"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"banger/vmm"
)

// statsRequest is struct if_stats_msg of linux/if_link.h, for the 64 bit counters of every link.
type statsRequest struct{}

const (
	statsHeader = 12     // bytes of if_stats_msg; the interface's index is at 4
	statsLink64 = 1      // IFLA_STATS_LINK_64
	typeMask    = 0x3fff // NLA_TYPE_MASK of linux/netlink.h
)

func (statsRequest) Len() int { return statsHeader }

func (statsRequest) Serialize() []byte {
	b := make([]byte, statsHeader)
	binary.NativeEndian.PutUint32(b[8:], 1<<(statsLink64-1))
	return b
}

// LinkStats implements vmm.Network with one RTM_GETSTATS dump (rtnetlink(7), linux/if_link.h).
func (n *Network) LinkStats() (map[uint64]vmm.LinkStats, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETSTATS, unix.NLM_F_DUMP)
	request.AddData(statsRequest{})
	byIndex := make(map[int]vmm.LinkStats)
	err := request.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWSTATS, func(m []byte) bool {
		if index, s, ok := parseLinkStats(m); ok {
			byIndex[index] = s
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read the links' figures: %w", err)
	}
	serials, err := n.serials(byIndex)
	if err != nil {
		return nil, err
	}
	bySerial := make(map[uint64]vmm.LinkStats, len(serials))
	for index, s := range byIndex {
		if serial := serials[index]; serial != 0 {
			bySerial[serial] = s
		}
	}
	return bySerial, nil
}

// parseLinkStats parses one message of the dump: if_stats_msg and, as an attribute, struct
// rtnl_link_stats64.
func parseLinkStats(m []byte) (index int, s vmm.LinkStats, ok bool) {
	if len(m) < statsHeader {
		return 0, s, false
	}
	index = int(binary.NativeEndian.Uint32(m[4:]))
	attributes, err := nl.ParseRouteAttr(m[statsHeader:])
	if err != nil {
		return 0, s, false
	}
	for _, a := range attributes {
		if a.Attr.Type&typeMask != statsLink64 || len(a.Value) < 4*8 {
			continue
		}
		for i, to := range []*uint64{&s.RxPackets, &s.TxPackets, &s.RxBytes, &s.TxBytes} {
			*to = binary.NativeEndian.Uint64(a.Value[8*i:])
		}
		return index, s, true
	}
	return 0, s, false
}

// serials returns the VMs' serials by their taps, 0 for a foreign link. It lists links only if one is
// unknown.
func (n *Network) serials(links map[int]vmm.LinkStats) (map[int]uint64, error) {
	n.tapsMu.Lock()
	known := maps.Clone(n.taps)
	n.tapsMu.Unlock()
	all := make(map[int]uint64, len(links))
	complete := true
	for index := range links {
		serial, ok := known[index]
		all[index] = serial
		complete = complete && ok
	}
	if !complete {
		list, err := netlink.LinkList()
		if err != nil {
			return nil, fmt.Errorf("cannot list the links: %w", err)
		}
		for _, l := range list {
			all[l.Attrs().Index] = n.serialOf(l.Attrs())
		}
	}
	n.tapsMu.Lock()
	n.taps = all
	n.tapsMu.Unlock()
	return all, nil
}

// serialOf undoes tapName for a link that is this daemon's, else 0.
func (n *Network) serialOf(l *netlink.LinkAttrs) uint64 {
	text, ok := strings.CutPrefix(l.Name, n.o.Bridge+"-")
	if !ok || !strings.HasPrefix(l.Alias, aliasMark+n.o.Instance+":") {
		return 0
	}
	serial, err := strconv.ParseUint(text, 36, 64)
	if err != nil {
		return 0
	}
	return serial
}
