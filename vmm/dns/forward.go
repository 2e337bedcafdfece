package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"banger/internal/host"
)

const (
	// forwardTime is for all resolvers together. After 5 s a client asks again (resolv.conf(5)).
	forwardTime = 4500 * time.Millisecond
	ednsSize    = 1232 // bytes of UDP that go through everywhere (DNS flag day 2020)
	headerSize  = 12
	maxReply    = 4096 // bytes of UDP that are read of a resolver
	maxStrays   = 16   // replies to something else, after which a resolver is given up
	maxLong     = 16   // replies over TCP at once: each may have 64 KiB
)

var errNoResolver = errors.New("the host has no resolver but this one")

// forwarder asks the host's resolvers.
type forwarder struct {
	conf *resolvConf
	own  []netip.AddrPort // where this server itself listens: never asked
	good atomic.Uint32    // the one that answered last is asked first
	long chan struct{}    // slots for replies over TCP
}

// ask asks one resolver after the other until one knows. A reply that is too long for UDP is fetched
// whole for a client over TCP; otherwise it is cut and marked as such. It blocks until ctx ends, at
// most.
func (f *forwarder) ask(ctx context.Context, q *dns.Msg, tcp bool) (*dns.Msg, error) {
	servers := without(f.conf.resolvers(), f.own)
	if len(servers) == 0 {
		return nil, errNoResolver
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTime)
	defer cancel()
	first := int(f.good.Load())
	var last *dns.Msg
	var errs []error
	for i := range servers {
		n := (first + i) % len(servers)
		one, cancel := context.WithTimeout(ctx, forwardTime/time.Duration(len(servers)))
		reply, err := f.exchange(one, servers[n], q, tcp)
		cancel()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		switch last = reply; reply.Rcode {
		case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented: // another may know
			continue
		}
		f.good.Store(uint32(n))
		return reply, nil
	}
	if last != nil {
		return last, nil
	}
	return nil, errors.Join(errs...)
}

// exchange asks one resolver.
func (f *forwarder) exchange(
	ctx context.Context, server netip.AddrPort, q *dns.Msg, tcp bool,
) (*dns.Msg, error) {
	m := *q
	m.Id = dns.Id()
	reply, err := exchange(ctx, "udp", server, &m)
	if err != nil || !reply.Truncated || !tcp {
		return reply, err
	}
	select {
	case f.long <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-f.long }()
	return exchange(ctx, "tcp", server, &m)
}

// exchange sends m and waits for its reply until ctx ends. Each query has a connected socket of its
// own, and so a port that cannot be guessed.
func exchange(
	ctx context.Context, network string, server netip.AddrPort, m *dns.Msg,
) (*dns.Msg, error) {
	fail := func(err error) error {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("resolver %s: %w", server, err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, fail(err)
	}
	defer conn.Close()
	defer host.Deadline(ctx, conn.SetDeadline)()
	b, err := m.Pack()
	if err != nil {
		return nil, err
	}
	read := func() ([]byte, error) {
		buf := make([]byte, maxReply)
		n, err := conn.Read(buf)
		return buf[:n], err
	}
	if network == "tcp" {
		b = framed(b)
		read = func() ([]byte, error) { return readFrame(conn, dns.MaxMsgSize) }
	}
	if _, err := conn.Write(b); err != nil {
		return nil, fail(err)
	}
	for range maxStrays {
		b, err := read()
		if err != nil {
			return nil, fail(err)
		}
		var r dns.Msg
		if r.Unpack(b) == nil && r.Id == m.Id && r.Response && len(r.Question) == 1 &&
			sameQuestion(r.Question[0], m.Question[0]) {
			return &r, nil
		}
	}
	return nil, fail(errors.New("it does not answer what it was asked"))
}

func sameQuestion(a, b dns.Question) bool {
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass &&
		dns.CanonicalName(a.Name) == dns.CanonicalName(b.Name)
}

// framed puts a message's length before it, as it goes over TCP (RFC 1035 4.2.2).
func framed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b))), b...)
}

// readFrame reads a message of at most that many bytes, at least its header's.
func readFrame(r io.Reader, most int) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n < headerSize || n > most {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}
