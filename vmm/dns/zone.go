package dns

import (
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/miekg/dns"
)

const (
	zoneName = "vm."
	// ttl of answers, in seconds, also of the answer that there is no such name (RFC 2308): VMs come
	// and go.
	ttl = 5
)

// Names knows the running VMs. Its methods do not block and may be called from many goroutines.
type Names interface {
	// Addresses of the running VM of that name; none if there is no such VM.
	Addresses(name string) []netip.Addr
	// NameOf gives the name of the running VM that has the address, empty if none has.
	NameOf(netip.Addr) string
}

// zone answers for the names of VMs, in both directions.
type zone struct {
	names    Names
	prefixes []netip.Prefix                // of the guests
	canary   func(label string) netip.Addr // of a name that no VM can have; invalid for most
}

// answer is what is known of a name of the zone.
type answer struct {
	apex   string   // of the zone that the name is in
	exists bool     // the name does, with whatever records
	rrs    []dns.RR // of the type that was asked for
}

// lookup answers for a name in canonical form. It is false when the name is none of ours.
func (z *zone) lookup(q dns.Question) (answer, bool) {
	labels := dns.SplitDomainName(q.Name)
	if a, ok := special(q, labels); ok {
		return a, true
	}
	if n := len(labels); n > 0 && labels[n-1]+"." == zoneName {
		return z.forward(q, labels[:n-1]), true
	}
	return z.backward(q, labels)
}

// special answers for names that no resolver may be asked for. localhost and all below it is the
// asker itself, and nothing is below invalid (RFC 6761 6.3 and 6.4) and onion (RFC 7686 2).
func special(q dns.Question, labels []string) (a answer, ok bool) {
	if len(labels) == 0 {
		return answer{}, false
	}
	switch last := labels[len(labels)-1]; last {
	case "localhost":
		a = answer{apex: last + ".", exists: true}
		if wants(q.Qtype, dns.TypeA) {
			a.rrs = append(a.rrs, &dns.A{Hdr: header(q.Name, dns.TypeA), A: net.IPv4(127, 0, 0, 1)})
		}
		if wants(q.Qtype, dns.TypeAAAA) {
			h := header(q.Name, dns.TypeAAAA)
			a.rrs = append(a.rrs, &dns.AAAA{Hdr: h, AAAA: net.IPv6loopback})
		}
		return a, true
	case "invalid", "onion":
		return answer{apex: last + "."}, true
	}
	return answer{}, false
}

// forward answers for what is left of a name in front of the zone's.
func (z *zone) forward(q dns.Question, labels []string) answer {
	a := answer{apex: zoneName}
	if len(labels) == 0 {
		a.atApex(q.Qtype)
		return a
	}
	if len(labels) > 1 {
		return a
	}
	addrs := z.names.Addresses(labels[0])
	if c := z.canary(labels[0]); c.IsValid() {
		addrs = []netip.Addr{c}
	}
	a.exists = len(addrs) > 0
	for _, addr := range addrs {
		if addr.Is4() && wants(q.Qtype, dns.TypeA) {
			a.rrs = append(a.rrs, &dns.A{Hdr: header(q.Name, dns.TypeA), A: addr.AsSlice()})
		}
		if addr.Is6() && wants(q.Qtype, dns.TypeAAAA) {
			a.rrs = append(a.rrs, &dns.AAAA{Hdr: header(q.Name, dns.TypeAAAA), AAAA: addr.AsSlice()})
		}
	}
	return a
}

// backward answers for names of the reverse zones of the guests' prefixes (RFC 1035 3.5, RFC 3596
// 2.5). A zone begins at the first whole label: that of 172.30.0.0/20 has three numbers.
func (z *zone) backward(q dns.Question, labels []string) (answer, bool) {
	at, below, ok := reverse(labels)
	if !ok {
		return answer{}, false
	}
	i := slices.IndexFunc(z.prefixes, func(p netip.Prefix) bool {
		return p.Bits() <= at.Bits() && p.Contains(at.Addr())
	})
	if i < 0 {
		return answer{}, false
	}
	a := answer{apex: reverseApex(netip.PrefixFrom(at.Addr(), z.prefixes[i].Bits())), exists: !below}
	switch {
	case below:
	case at.IsSingleIP():
		name := z.names.NameOf(at.Addr())
		a.exists = name != ""
		if a.exists && wants(q.Qtype, dns.TypePTR) {
			a.rrs = []dns.RR{&dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: name + "." + zoneName}}
		}
	case q.Name == a.apex:
		a.atApex(q.Qtype)
	}
	return a, true
}

// atApex answers for the name of a zone, as RFC 6303 has local ones.
func (a *answer) atApex(qtype uint16) {
	a.exists = true
	if wants(qtype, dns.TypeSOA) {
		a.rrs = append(a.rrs, soa(a.apex))
	}
	if wants(qtype, dns.TypeNS) {
		a.rrs = append(a.rrs, &dns.NS{Hdr: header(a.apex, dns.TypeNS), Ns: a.apex})
	}
}

func wants(asked, has uint16) bool { return asked == has || asked == dns.TypeANY }

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// soa is the record that an answer without records comes with.
func soa(apex string) dns.RR {
	return &dns.SOA{Hdr: header(apex, dns.TypeSOA), Ns: apex, Mbox: "nobody.invalid.", Serial: 1,
		Refresh: 3600, Retry: 1200, Expire: 604800, Minttl: ttl}
}

// reverse returns the address, or the prefix, of a name below in-addr.arpa or ip6.arpa. below is true
// if labels that are no numbers, or too many labels, precede it.
func reverse(labels []string) (at netip.Prefix, below, ok bool) {
	n := len(labels)
	if n < 2 || labels[n-1] != "arpa" {
		return netip.Prefix{}, false, false
	}
	base, bits, digits := 0, 0, 0 // of one label, and in how many digits it can be written
	var b []byte
	switch labels[n-2] {
	case "in-addr":
		base, bits, digits, b = 10, 8, 3, make([]byte, 4)
	case "ip6":
		base, bits, digits, b = 16, 4, 1, make([]byte, 16)
	default:
		return netip.Prefix{}, false, false
	}
	length, i := 0, n-3
	for ; i >= 0 && length < 8*len(b); i-- {
		l := labels[i]
		v, err := strconv.ParseUint(l, base, 8)
		if err != nil || len(l) > digits || len(l) > 1 && l[0] == '0' {
			break
		}
		b[length/8] |= byte(v) << (8 - bits - length%8)
		length += bits
	}
	addr, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(addr, length), i >= 0, true
}

// reverseApex names the reverse zone that the prefix begins.
func reverseApex(p netip.Prefix) string {
	name, err := dns.ReverseAddr(p.Addr().String())
	if err != nil {
		return "." // no address's text gives one
	}
	step, all := 8, 4
	if p.Addr().Is6() {
		step, all = 4, 32
	}
	labels := dns.Split(name)
	return name[labels[all-(p.Bits()+step-1)/step]:]
}

// reverseZones names the reverse zones of a prefix: as many as its last label leaves open.
func reverseZones(p netip.Prefix) []string {
	step := 8
	if p.Addr().Is6() {
		step = 4
	}
	whole := (p.Bits() + step - 1) / step * step
	var zones []string
	b := p.Masked().Addr().AsSlice()
	for range 1 << (whole - p.Bits()) {
		addr, _ := netip.AddrFromSlice(b)
		zones = append(zones, reverseApex(netip.PrefixFrom(addr, whole)))
		if whole > 0 {
			b[(whole-1)/8] += 1 << (7 - (whole-1)%8)
		}
	}
	return zones
}
