package network

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
)

// private are the networks that are never the world (RFC 1918, 6598, 3927, 4193, 4291).
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("fec0::/10"),
}

// intervals gives the elements of a set of prefixes of one family, none of which is within another.
func intervals(prefixes []netip.Prefix, v4 bool) []nftables.SetElement {
	var kept []netip.Prefix
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	for _, p := range prefixes {
		covered := slices.ContainsFunc(kept, func(k netip.Prefix) bool { return k.Overlaps(p) })
		if p.Addr().Is4() == v4 && !covered {
			kept = append(kept, p)
		}
	}
	slices.SortFunc(kept, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	var all []nftables.SetElement
	for _, p := range kept {
		all = append(all, nftables.SetElement{Key: p.Masked().Addr().AsSlice()})
		if next := last(p).Next(); next.IsValid() {
			all = append(all, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
		}
	}
	return all
}

// last is the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		if bits := p.Bits() - 8*i; bits < 8 {
			b[i] |= byte(0xff >> max(bits, 0))
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
