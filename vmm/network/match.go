package network

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers of 4 bytes each. A longer value occupies as many as it needs (nft(8),
// linux/netfilter/nf_tables.h).
const (
	r0 = unix.NFT_REG32_00
	r1 = unix.NFT_REG32_01
	r2 = unix.NFT_REG32_02
	r4 = unix.NFT_REG32_04
	r5 = unix.NFT_REG32_05
	r6 = unix.NFT_REG32_06
)

// Fields of headers by base, offset and length (RFC 791, RFC 826, RFC 8200, RFC 4861, IEEE 802.3).
type field struct {
	base        expr.PayloadBase
	offset, len uint32
}

// match is a piece of a rule; a rule is pieces one after the other.
type match []expr.Any

func rule(parts ...match) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func (f field) load(reg uint32) match {
	return match{&expr.Payload{DestRegister: reg, Base: f.base, Offset: f.offset, Len: f.len}}
}

func compare(op expr.CmpOp, value []byte) match {
	return match{&expr.Cmp{Op: op, Register: r0, Data: value}}
}

func (f field) is(value ...byte) match {
	return append(f.load(r0), compare(expr.CmpOpEq, value)...)
}
func (f field) not(value ...byte) match {
	return append(f.load(r0), compare(expr.CmpOpNeq, value)...)
}

// between is whether a field of one byte is first to last.
func (f field) between(first, last byte) match {
	return append(f.load(r0), &expr.Range{Op: expr.CmpOpEq, Register: r0,
		FromData: []byte{first}, ToData: []byte{last}})
}

func (f field) in(p netip.Prefix) match {
	mask := slices.Repeat([]byte{0xff}, p.Bits()/8)
	if rest := p.Bits() % 8; rest > 0 {
		mask = append(mask, byte(0xff<<(8-rest)))
	}
	mask = append(mask, make([]byte, int(f.len)-len(mask))...)
	return append(f.load(r0), masked(mask),
		&expr.Cmp{Op: expr.CmpOpEq, Register: r0, Data: p.Masked().Addr().AsSlice()})
}

// masked clears the bits of r0 that mask lacks.
func masked(mask []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: r0, DestRegister: r0,
		Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))}
}

// fragmentOf is a packet with the header of a fragment (RFC 8200) after which there is that one.
func fragmentOf(next byte) match {
	header := &expr.Exthdr{DestRegister: r0, Type: unix.IPPROTO_FRAGMENT, Len: 1,
		Op: expr.ExthdrOpIpv6}
	return append(match{header}, compare(expr.CmpOpEq, []byte{next})...)
}

func meta(key expr.MetaKey, reg uint32) match { return match{&expr.Meta{Key: key, Register: reg}} }

func metaIs(key expr.MetaKey, value ...byte) match {
	return append(meta(key, r0), compare(expr.CmpOpEq, value)...)
}

func nameIs(key expr.MetaKey, name string) match { return metaIs(key, nameBytes(name)...) }
func nameNot(key expr.MetaKey, name string) match {
	return append(meta(key, r0), compare(expr.CmpOpNeq, nameBytes(name))...)
}

// nameBytes is the name of a link as registers and sets have it.
func nameBytes(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func within(set string) match { return match{&expr.Lookup{SourceRegister: r0, SetName: set}} }
func notWithin(set string) match {
	return match{&expr.Lookup{SourceRegister: r0, SetName: set, Invert: true}}
}

func verdict(kind expr.VerdictKind) match { return match{&expr.Verdict{Kind: kind}} }

// conntrack matches a packet whose connection has any of these bits in the kernel's tracking.
func conntrack(key expr.CtKey, bits uint32) match { return connectionBits(key, bits, expr.CmpOpNeq) }

// connectionBits compares these bits of the connection in the kernel's tracking with none.
func connectionBits(key expr.CtKey, bits uint32, op expr.CmpOp) match {
	return match{&expr.Ct{Key: key, Register: r0},
		masked(binary.NativeEndian.AppendUint32(nil, bits)),
		&expr.Cmp{Op: op, Register: r0, Data: make([]byte, 4)}}
}

// reply is a packet of the side that did not begin an established connection.
var reply = rule(match{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: r0},
	&expr.Cmp{Op: expr.CmpOpEq, Register: r0, Data: []byte{1}}},
	conntrack(expr.CtKeySTATE, expr.CtStateBitESTABLISHED))

var related = conntrack(expr.CtKeySTATE, expr.CtStateBitRELATED)

// notNew is a packet that begins no connection that the kernel tracks.
var notNew = connectionBits(expr.CtKeySTATE, expr.CtStateBitNEW, expr.CmpOpEq)

// eachGuest applies a limit to what each guest sends by itself, told apart by its MAC, which the
// chain spoof has checked: IPv4 and IPv6 count together.
func eachGuest(set string, limit expr.Any) match {
	return append(etherSource.load(r0), &expr.Dynset{SrcRegKey: r0, SetName: set,
		Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{limit}})
}

// localDest is a packet to any address of the host.
var localDest = match{&expr.Fib{Register: r0, FlagDADDR: true, ResultADDRTYPE: true},
	&expr.Cmp{Op: expr.CmpOpEq, Register: r0, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)}}
