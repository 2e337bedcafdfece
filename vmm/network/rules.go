package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

var (
	etherSource  = field{expr.PayloadBaseLLHeader, 6, 6}
	etherType    = field{expr.PayloadBaseLLHeader, 12, 2}
	arpKind      = field{expr.PayloadBaseNetworkHeader, 0, 6} // hardware, protocol and the lengths of their addresses
	arpSource    = field{expr.PayloadBaseNetworkHeader, 8, 6}
	arpAddress   = field{expr.PayloadBaseNetworkHeader, 14, 4}
	ip4Source    = field{expr.PayloadBaseNetworkHeader, 12, 4}
	ip4Dest      = field{expr.PayloadBaseNetworkHeader, 16, 4}
	ip6Source    = field{expr.PayloadBaseNetworkHeader, 8, 16}
	ip6Dest      = field{expr.PayloadBaseNetworkHeader, 24, 16}
	portSource   = field{expr.PayloadBaseTransportHeader, 0, 2}
	portDest     = field{expr.PayloadBaseTransportHeader, 2, 2}
	icmpType     = field{expr.PayloadBaseTransportHeader, 0, 1}
	ndTarget     = field{expr.PayloadBaseTransportHeader, 8, 16}
	ndOption     = field{expr.PayloadBaseTransportHeader, 24, 1}
	ndOptionMAC  = field{expr.PayloadBaseTransportHeader, 26, 6}
	ndMoreOption = field{expr.PayloadBaseTransportHeader, 32, 1}
)

// Types of ICMP messages (RFC 792, RFC 4443, RFC 4861, RFC 3810).
const (
	icmpReply    = 0
	icmpEcho     = 8
	icmp6Echo    = 128
	icmp6Reply   = 129
	icmp6Router  = 134
	icmp6Solicit = 135
	icmp6Advert  = 136
	icmp6Direct  = 137
	icmp6MLD     = 143
)

const ctDstNAT = 1 << 5 // IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h

var (
	accept = verdict(expr.VerdictAccept)
	drop   = verdict(expr.VerdictDrop)
	// untracked keeps the kernel from tracking the packet's connection.
	untracked = match{&expr.Notrack{}}

	ofARP   = etherType.is(0x08, 0x06)
	ofIP4   = etherType.is(0x08, 0x00)
	ofIP6   = etherType.is(0x86, 0xdd)
	isIP4   = metaIs(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV4)
	isIP6   = metaIs(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6)
	isUDP   = metaIs(expr.MetaKeyL4PROTO, unix.IPPROTO_UDP)
	isICMP  = metaIs(expr.MetaKeyL4PROTO, unix.IPPROTO_ICMP)
	isICMP6 = metaIs(expr.MetaKeyL4PROTO, unix.IPPROTO_ICMPV6)
)

// Types of sets' keys and maps' values.
var (
	typePort    = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	typeSocket4 = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	typeSocket6 = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService)
	typeGuest4  = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	typeGuest6  = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService)
)

// set is one of our sets or maps.
type set struct {
	family nftables.TableFamily
	name   string
	key    nftables.SetDatatype
	value  nftables.SetDatatype // of a map
	meter  bool                 // the kernel adds an element for each guest that sends something
}

const bridgeFamily, inetFamily = nftables.TableFamilyBridge, nftables.TableFamilyINet

// What one guest may take of the host's table of connections (nf_conntrack), which all share. The
// rate bounds what the count costs: the kernel notes each packet that it counts, also those over
// the bound, and frees a few of these notes in each tick of its clock.
const (
	maxHeld   = 8192 // connections of a guest at a time
	heldShare = 16   // and no more than that part of nf_conntrack_max
	maxRate   = 1000 // new ones a second
	maxBurst  = 2000

	meterRate = "rate"
	meterHeld = "held"
)

// sets that guests have elements in.
var sets = []set{
	{bridgeFamily, "mac", nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr), nftables.SetDatatype{}, false},
	{bridgeFamily, "arp", nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr), nftables.SetDatatype{}, false},
	{bridgeFamily, "ip4", nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr), nftables.SetDatatype{}, false},
	{bridgeFamily, "ip6", nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIP6Addr), nftables.SetDatatype{}, false},
	{bridgeFamily, "together", nftables.TypeIFName, nftables.SetDatatype{}, false},
	{bridgeFamily, limitMap, nftables.TypeIFName, nftables.TypeVerdict, false},
	{inetFamily, "publish4", typeSocket4, typeGuest4, false},
	{inetFamily, "publish4_any", typePort, typeGuest4, false},
	{inetFamily, "publish6", typeSocket6, typeGuest6, false},
	{inetFamily, "publish6_any", typePort, typeGuest6, false},
	{inetFamily, "open4", typeSocket4, nftables.SetDatatype{}, false},
	{inetFamily, "open6", typeSocket6, nftables.SetDatatype{}, false},
	{inetFamily, meterRate, nftables.TypeEtherAddr, nftables.SetDatatype{}, true},
	{inetFamily, meterHeld, nftables.TypeEtherAddr, nftables.SetDatatype{}, true},
}

// socket loads address, protocol and port as the keys of open4 and open6 have them.
func socket(address field) match {
	at := uint32(r1)
	if address.len == 16 {
		at = r4
	}
	return rule(address.load(r0), meta(expr.MetaKeyL4PROTO, at), portDest.load(at+1))
}

// to4 and to6 lead a packet to the guest that the map has for what is loaded.
func to4(name string) match {
	return match{&expr.Lookup{SourceRegister: r0, DestRegister: r0, IsDestRegSet: true, SetName: name},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: r0, RegProtoMin: r1}}
}

func to6(name string) match {
	return match{&expr.Lookup{SourceRegister: r0, DestRegister: r0, IsDestRegSet: true, SetName: name},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV6, RegAddrMin: r0, RegProtoMin: r4}}
}

// chain is a base chain and its rules. What reaches the end is accepted. One without a kind has no
// hook: others jump to it.
type chain struct {
	family   nftables.TableFamily
	name     string
	kind     nftables.ChainType
	hook     nftables.ChainHook
	priority nftables.ChainPriority
	rules    [][]expr.Any
}

// Hooks have the same numbers in both families. The bridge family's priorities are dstnat and filter of
// nft(8).
const (
	hookPrerouting  = nftables.ChainHook(unix.NF_INET_PRE_ROUTING)
	hookInput       = nftables.ChainHook(unix.NF_INET_LOCAL_IN)
	hookOutput      = nftables.ChainHook(unix.NF_INET_LOCAL_OUT)
	hookForward     = nftables.ChainHook(unix.NF_INET_FORWARD)
	hookPostrouting = nftables.ChainHook(unix.NF_INET_POST_ROUTING)

	bridgeFirst  = nftables.ChainPriority(-300)
	bridgeFilter = nftables.ChainPriority(-200)
)

// chains are the whole policy, see docs/network.md.
func (n *Network) chains() []chain {
	// The names of ports exclude foreign bridges: meta ibrname needs a module that few kernels have.
	prefix := []byte(n.o.Bridge + "-")
	ours := metaIs(expr.MetaKeyIIFNAME, prefix...)
	others := func(key expr.MetaKey) match {
		return append(meta(key, r0), compare(expr.CmpOpNeq, prefix)...)
	}
	tap := meta(expr.MetaKeyIIFNAME, r0)
	tap4, tap6 := rule(tap, ip4Source.load(r4)), rule(tap, ip6Source.load(r4))
	target := rule(tap, ndTarget.load(r4), notWithin("ip6"))
	nd := rule(ofIP6, isICMP6, icmpType.between(icmp6Solicit, icmp6Advert))
	spoof := [][]expr.Any{
		rule(others(expr.MetaKeyIIFNAME), accept),
		rule(tap, limited),
		// Fragments that hide what is to be looked at in the next one (RFC 7113, RFC 6980).
		rule(fragmentOf(unix.IPPROTO_HOPOPTS), drop),
		rule(fragmentOf(unix.IPPROTO_ROUTING), drop),
		rule(fragmentOf(unix.IPPROTO_AH), drop),
		rule(fragmentOf(unix.IPPROTO_DSTOPTS), drop),
		rule(nd, fragmentOf(unix.IPPROTO_ICMPV6), drop),
		rule(tap, etherSource.load(r4), notWithin("mac"), drop),
		rule(ofARP, arpKind.is(0, 1, 8, 0, 6, 4), tap, arpSource.load(r4), arpAddress.load(r6), within("arp"), accept),
		rule(ofIP4, isUDP, portSource.is(0, 67), drop), // a DHCP server
		rule(ofIP4, tap4, within("ip4"), accept),
		rule(ofIP6, isUDP, portSource.is(0x02, 0x23), drop), // a DHCPv6 server
		rule(ofIP6, isICMP6, icmpType.is(icmp6Router), drop),
		rule(ofIP6, isICMP6, icmpType.is(icmp6Direct), drop),
		// Of what neighbour discovery may tell, the own addresses and the own MAC, in one option at most.
		rule(nd, ndMoreOption.load(r0), drop),
		rule(nd, ndOption.between(1, 2), tap, ndOptionMAC.load(r4), notWithin("mac"), drop),
		rule(ofIP6, isICMP6, icmpType.is(icmp6Advert), target, drop),
		// Before a guest has an address it asks whether another has it, and joins its groups.
		rule(ofIP6, ip6Source.is(make([]byte, 16)...), isICMP6, icmpType.is(icmp6Solicit), tap, ndTarget.load(r4), within("ip6"), accept),
		rule(ofIP6, ip6Source.is(make([]byte, 16)...), isICMP6, icmpType.is(icmp6MLD), accept),
		rule(ofIP6, tap6, within("ip6"), accept),
		{drop[0]},
	}
	forward := [][]expr.Any{
		rule(others(expr.MetaKeyIIFNAME), others(expr.MetaKeyOIFNAME), accept),
		rule(tap, within("together"), meta(expr.MetaKeyOIFNAME, r0), within("together"), accept),
		{drop[0]},
	}
	// What a guest sends to another by the host's own MAC would be routed past the chain forward.
	gateway := n.Gateway().AsSlice()
	hairpin := [][]expr.Any{rule(ours, ofIP4, ip4Dest.in(n.o.Prefix), ip4Dest.not(gateway...), drop)}
	if n.prefix6.IsValid() {
		hairpin = append(hairpin, rule(ours, ofIP6, ip6Dest.in(n.prefix6), ip6Dest.not(n.Gateway6().AsSlice()...), drop))
	}
	return []chain{
		{family: inetFamily, name: n.instanceChain()},
		{family: bridgeFamily, name: n.instanceChain()},
		{family: inetFamily, name: admitChain, rules: n.admitRules()},
		{inetFamily, "untracked", nftables.ChainTypeFilter, hookPrerouting, *nftables.ChainPriorityRaw, n.untrackedRules()},
		{inetFamily, "answers", nftables.ChainTypeFilter, hookOutput, *nftables.ChainPriorityRaw, n.answerRules()},
		{bridgeFamily, "spoof", nftables.ChainTypeFilter, hookPrerouting, bridgeFirst, spoof},
		{bridgeFamily, "forward", nftables.ChainTypeFilter, hookForward, bridgeFilter, forward},
		{bridgeFamily, "hairpin", nftables.ChainTypeFilter, hookInput, bridgeFilter, hairpin},
		{inetFamily, "publish", nftables.ChainTypeNAT, hookPrerouting, *nftables.ChainPriorityNATDest, n.publishRules()},
		{inetFamily, "masquerade", nftables.ChainTypeNAT, hookPostrouting, *nftables.ChainPriorityNATSource, n.masqueradeRules()},
		{inetFamily, "input", nftables.ChainTypeFilter, hookInput, *nftables.ChainPriorityFilter, n.inputRules()},
		{inetFamily, "forward", nftables.ChainTypeFilter, hookForward, *nftables.ChainPriorityFilter, n.forwardRules()},
	}
}

func (n *Network) publishRules() [][]expr.Any {
	port := rule(meta(expr.MetaKeyL4PROTO, r0), portDest.load(r1))
	return [][]expr.Any{
		rule(nameIs(expr.MetaKeyIIFNAME, n.o.Bridge), accept),
		rule(isIP4, socket(ip4Dest), to4("publish4")),
		rule(isIP4, localDest, port, to4("publish4_any")),
		rule(isIP6, socket(ip6Dest), to6("publish6")),
		rule(isIP6, localDest, port, to6("publish6_any")),
	}
}

func (n *Network) masqueradeRules() [][]expr.Any {
	if !n.o.NAT {
		return nil
	}
	out := rule(nameNot(expr.MetaKeyOIFNAME, n.o.Bridge), match{&expr.Masq{}})
	rules := [][]expr.Any{rule(isIP4, ip4Source.in(n.o.Prefix), out)}
	if n.prefix6.IsValid() {
		rules = append(rules, rule(isIP6, ip6Source.in(n.prefix6), out))
	}
	return rules
}

// inputRules are for what guests send to the host itself.
func (n *Network) inputRules() [][]expr.Any {
	rules := [][]expr.Any{rule(nameNot(expr.MetaKeyIIFNAME, n.o.Bridge), accept)}
	if n.o.GuestToHost {
		return append(rules, admit)
	}
	rules = append(rules, rule(related, accept), rule(reply, accept),
		rule(isIP6, isICMP6, icmpType.between(icmp6Solicit, icmp6Advert), accept))
	for _, s := range n.services() {
		rules = append(rules, rule(s.asked, admit))
	}
	return append(rules, drop)
}

// service is what every guest may ask the gateway, and how its answers look.
type service struct{ asked, answered match }

func (n *Network) services() []service {
	var all []service
	gateway := func(version, icmp match, from, to field, address netip.Addr, echo, reply byte) {
		toUs := rule(version, to.is(address.AsSlice()...))
		fromUs := rule(version, from.is(address.AsSlice()...))
		all = append(all, service{rule(toUs, icmp, icmpType.is(echo)), rule(fromUs, icmp, icmpType.is(reply))})
		for _, protocol := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			is := metaIs(expr.MetaKeyL4PROTO, protocol)
			all = append(all, service{rule(toUs, is, portDest.is(0, 53)), rule(fromUs, is, portSource.is(0, 53))})
		}
	}
	gateway(isIP4, isICMP, ip4Source, ip4Dest, n.Gateway(), icmpEcho, icmpReply)
	if n.prefix6.IsValid() {
		gateway(isIP6, isICMP6, ip6Source, ip6Dest, n.Gateway6(), icmp6Echo, icmp6Reply)
	}
	return all
}

// untrackedRules keep what guests ask the gateway out of the host's table of connections, and
// answerRules its answers.
func (n *Network) untrackedRules() [][]expr.Any {
	return n.eachService(func(s service) []expr.Any { return rule(nameIs(expr.MetaKeyIIFNAME, n.o.Bridge), s.asked, untracked) })
}

func (n *Network) answerRules() [][]expr.Any {
	return n.eachService(func(s service) []expr.Any {
		return rule(nameIs(expr.MetaKeyOIFNAME, n.o.Bridge), s.answered, untracked)
	})
}

func (n *Network) eachService(f func(service) []expr.Any) [][]expr.Any {
	var rules [][]expr.Any
	for _, s := range n.services() {
		rules = append(rules, f(s))
	}
	return rules
}

const admitChain = "admit"

// admit accepts what a guest sends, within what it may take of the host's table of connections.
var admit = match{&expr.Verdict{Kind: expr.VerdictJump, Chain: admitChain}}

func (n *Network) admitRules() [][]expr.Any {
	return [][]expr.Any{
		rule(notNew, accept),
		rule(eachGuest(meterRate, &expr.Limit{Type: expr.LimitTypePkts, Rate: maxRate, Unit: expr.LimitTimeSecond, Burst: maxBurst, Over: true}), drop),
		rule(eachGuest(meterHeld, &expr.Connlimit{Count: n.held, Flags: expr.NFT_CONNLIMIT_F_INV}), drop),
		accept,
	}
}

// forwardRules filter packets between guests and anything but the host, and packets between guests
// where bridge-nf-call-iptables shows them.
func (n *Network) forwardRules() [][]expr.Any {
	from, to := nameIs(expr.MetaKeyIIFNAME, n.o.Bridge), nameIs(expr.MetaKeyOIFNAME, n.o.Bridge)
	rules := [][]expr.Any{
		rule(from, to, admit), // the bridge's chains have decided
		rule(from, related, accept), rule(to, related, accept),
		rule(from, reply, accept), rule(to, reply, accept),
		rule(to, isIP4, conntrack(expr.CtKeySTATUS, ctDstNAT), socket(ip4Dest), within("open4"), accept),
		rule(to, isIP6, conntrack(expr.CtKeySTATUS, ctDstNAT), socket(ip6Dest), within("open6"), accept),
		rule(to, drop),
	}
	if n.o.NAT {
		if n.o.Uplink != "" {
			rules = append(rules, rule(from, nameNot(expr.MetaKeyOIFNAME, n.o.Uplink), drop))
		}
		if !n.o.LAN {
			rules = append(rules, rule(from, isIP4, ip4Dest.load(r0), within("lan4"), drop),
				rule(from, isIP6, ip6Dest.load(r0), within("lan6"), drop))
		}
		return append(rules, rule(from, admit))
	}
	return append(rules, rule(from, drop))
}
