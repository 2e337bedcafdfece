package dns

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Bounds of one source, so that a guest's flood leaves the others their share. A guest is two
// sources, one of each family.
const (
	queryRate  = 2000 // a second
	queryBurst = 2 * queryRate
	// Queries to resolvers fill the host's table of connections, which all share, each with
	// a port of its own for 30 s and more. Guests that browse stay far below.
	forwardRate   = 100 // a second
	forwardBurst  = 500
	sourceAsking  = 64 // queries that wait for a resolver
	sourceConns   = 8
	maxSources    = 1 << 16
	sourceForgets = 10 * time.Second
	hostLook      = 5 * time.Second // how often the host's own addresses are read, at most
)

// source is what one address has under way.
type source struct {
	queries, forwards bucket
	asking, conns     int
}

// bucket bounds how often something happens.
type bucket struct {
	tokens float64 // what may happen at once
	at     time.Time
}

// take reports whether it may happen once more.
func (b *bucket) take(now time.Time, rate, burst float64) bool {
	b.tokens = min(burst, b.tokens+now.Sub(b.at).Seconds()*rate)
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// sources knows all who ask.
type sources struct {
	mu       sync.Mutex // guards what follows and every source in bySource
	bySource map[netip.Addr]*source
	forgot   time.Time // when those that have nothing under way were looked for last
}

// of gives the source, nil when there are too many that have something under way.
func (s *sources) of(a netip.Addr, now time.Time) *source {
	if x := s.bySource[a]; x != nil {
		return x
	}
	if len(s.bySource) >= maxSources && now.Sub(s.forgot) > sourceForgets/10 {
		s.forgot = now
		for k, x := range s.bySource {
			if x.asking == 0 && x.conns == 0 && now.Sub(x.queries.at) > sourceForgets {
				delete(s.bySource, k)
			}
		}
	}
	if len(s.bySource) >= maxSources {
		return nil
	}
	x := &source{queries: bucket{queryBurst, now}, forwards: bucket{forwardBurst, now}}
	s.bySource[a] = x
	return x
}

// take reports whether one more query is let through.
func (s *sources) take(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	x := s.of(a, now)
	return x != nil && x.queries.take(now, queryRate, queryBurst)
}

// forward reports whether one more query of a guest may go to a resolver.
func (s *sources) forward(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	x := s.of(a, now)
	return x != nil && x.forwards.take(now, forwardRate, forwardBurst)
}

// begin and end count the queries that wait for a resolver, connect and disconnect the connections.
// free is the count of free slots of all sources. One source may have half as many, so that a few
// greedy sources leave some for the next one.
func (s *sources) begin(a netip.Addr, free int) bool {
	return s.count(a, func(x *source) *int { return &x.asking }, min(sourceAsking, (free+1)/2))
}
func (s *sources) connect(a netip.Addr, free int) bool {
	return s.count(a, func(x *source) *int { return &x.conns }, min(sourceConns, (free+1)/2))
}
func (s *sources) end(a netip.Addr)        { s.uncount(a, func(x *source) *int { return &x.asking }) }
func (s *sources) disconnect(a netip.Addr) { s.uncount(a, func(x *source) *int { return &x.conns }) }

func (s *sources) count(a netip.Addr, what func(*source) *int, most int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.of(a, time.Now())
	if x == nil || *what(x) >= most {
		return false
	}
	*what(x)++
	return true
}

func (s *sources) uncount(a netip.Addr, what func(*source) *int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*what(s.bySource[a])-- // what has something under way is never forgotten
}

// hostAddrs are the addresses of the host itself.
type hostAddrs struct {
	mu     sync.Mutex
	addrs  []netip.Addr
	looked time.Time
}

// has reports whether the address is one of the host's, or was a moment ago.
func (h *hostAddrs) has(a netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); now.Sub(h.looked) >= hostLook {
		h.looked, h.addrs = now, nil
		addrs, _ := net.InterfaceAddrs() // without them only guests may ask
		for _, n := range addrs {
			if n, ok := n.(*net.IPNet); ok {
				if addr, ok := netip.AddrFromSlice(n.IP); ok {
					h.addrs = append(h.addrs, addr.Unmap())
				}
			}
		}
	}
	return slices.Contains(h.addrs, a)
}
