package dns

import (
	"net/netip"

	"github.com/miekg/dns"
)

func (s *Server) canaryOf(label string) netip.Addr {
	if c := s.canary.Load(); c == nil || *c != label {
		return netip.Addr{}
	}
	return s.own[0].Addr()
}

// answer returns the reply to a message, nil for none, and the largest size of the reply over UDP. A
// query is not nil if the host's resolvers must be asked first.
func (s *Server) answer(b []byte) (reply, query *dns.Msg, size int) {
	if len(b) < headerSize || b[2]&0x80 != 0 {
		return nil, nil, 0 // no query: to answer could go round for ever
	}
	size = dns.MinMsgSize
	q, r := new(dns.Msg), new(dns.Msg)
	if err := q.Unpack(b); err != nil || len(q.Question) != 1 {
		r.Id = uint16(b[0])<<8 | uint16(b[1])
		r.Response, r.Opcode, r.Rcode = true, int(b[2]>>3&0xf), dns.RcodeFormatError
		if r.Opcode != dns.OpcodeQuery {
			r.Rcode = dns.RcodeNotImplemented
		}
		return r, nil, size
	}
	r.SetReply(q)
	r.RecursionAvailable = true
	opt := q.IsEdns0()
	if opt != nil {
		r.SetEdns0(ednsSize, opt.Do())
		size = min(ednsSize, max(size, int(opt.UDPSize())))
	}
	question := q.Question[0]
	switch {
	case q.Opcode != dns.OpcodeQuery:
		r.Rcode = dns.RcodeNotImplemented
		return r, nil, size
	case opt != nil && opt.Version() != 0:
		r.Rcode = dns.RcodeBadVers
		return r, nil, size
	case question.Qclass != dns.ClassINET || refused(question.Qtype):
		r.Rcode = dns.RcodeRefused
		return r, nil, size
	}
	asked := question
	asked.Name = dns.CanonicalName(asked.Name)
	if a, ok := s.zone.lookup(asked); ok {
		r.Authoritative = true
		r.Answer = a.rrs
		for _, rr := range r.Answer {
			rr.Header().Name = question.Name // as it was written: some resolvers compare
		}
		if !a.exists {
			r.Rcode = dns.RcodeNameError
		}
		if len(a.rrs) == 0 {
			r.Ns = []dns.RR{soa(a.apex)}
		}
		return r, nil, size
	}
	query = &dns.Msg{MsgHdr: dns.MsgHdr{RecursionDesired: q.RecursionDesired,
		CheckingDisabled: q.CheckingDisabled, AuthenticatedData: q.AuthenticatedData},
		Question: []dns.Question{question}}
	if opt != nil {
		query.SetEdns0(ednsSize, opt.Do()) // without options: a client's subnet would show ours
	}
	return r, query, size
}

// refused are the types that are no records: transfers of zones, and types of other sections.
func refused(qtype uint16) bool {
	switch qtype {
	case dns.TypeAXFR, dns.TypeIXFR, dns.TypeTKEY, dns.TypeTSIG, dns.TypeOPT:
		return true
	}
	return false
}

// resolve asks the host's resolvers and completes the reply. It blocks for forwardTime at most.
func (s *Server) resolve(reply, query *dns.Msg, tcp bool) {
	got, err := s.forward.ask(s.ctx, query, tcp)
	if err != nil {
		s.o.Log.Debug("a query of a guest was not answered", "name", query.Question[0].Name, "err", err)
		reply.Rcode = dns.RcodeServerFailure
		return
	}
	reply.Rcode, reply.Truncated = got.Rcode, got.Truncated
	reply.AuthenticatedData = got.AuthenticatedData
	reply.Answer, reply.Ns = got.Answer, got.Ns
	var extra []dns.RR
	for _, rr := range got.Extra {
		switch rr.Header().Rrtype {
		case dns.TypeOPT, dns.TypeTSIG, dns.TypeSIG: // between the resolver and us
		default:
			extra = append(extra, rr)
		}
	}
	reply.Extra = append(extra, reply.Extra...)
	if reply.Rcode > 0xf && reply.IsEdns0() == nil {
		reply.Rcode = dns.RcodeServerFailure // it has no place in a reply without EDNS
	}
}

// pack gives the reply's bytes, cut to size.
func pack(reply *dns.Msg, size int) []byte {
	reply.Compress = true
	reply.Truncate(size)
	b, err := reply.Pack()
	if err == nil && len(b) <= size {
		return b
	}
	// What a resolver sent may be what cannot be written again; the question can.
	reply.Answer, reply.Ns, reply.Extra, reply.Rcode = nil, nil, nil, dns.RcodeServerFailure
	b, _ = reply.Pack() // nothing is sent if not even that
	return b
}
