package collector

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
)

// How long the outcome of a probe is believed of the same listener, that it speaks no HTTP as well. One that did not answer in time,
// or refused, may still be starting: it is tried again soon, then less and less often.
const (
	remember   = time.Minute
	firstDoubt = time.Second
)

// probeKey tells listeners apart for the memory of probes: a port that another process took over is another one.
type probeKey struct {
	port, pid int
	started   uint64
}

func keyOf(l guest.Listener) probeKey { return probeKey{l.Port, l.PID, l.Started} }

// memory is what earlier probes of one VM found; at most maxListeners entries, as only present listeners are kept.
type memory struct {
	mu   sync.Mutex
	seen map[probeKey]outcome // guarded by mu
}

// outcome is what a listener speaks: "https", "http" or "" for neither.
type outcome struct {
	address netip.Addr
	scheme  string
	until   time.Time
	doubt   time.Duration // how long it was believed, if it was not sure
}

// recall gives the schemes that are still believed of the listeners at address, and forgets who listens no more.
func (m *memory) recall(address netip.Addr, ls []guest.Listener, now time.Time) map[probeKey]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := make(map[probeKey]outcome)
	believed := make(map[probeKey]string)
	for _, l := range ls {
		k := keyOf(l)
		o, ok := m.seen[k]
		if !ok || o.address != address {
			continue
		}
		kept[k] = o
		if now.Before(o.until) {
			believed[k] = o.scheme
		}
	}
	m.seen = kept
	return believed
}

// store keeps an outcome of now.
func (m *memory) store(k probeKey, address netip.Addr, scheme string, sure bool, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := outcome{address: address, scheme: scheme, until: now.Add(remember)}
	if !sure {
		o.doubt = min(max(2*m.seen[k].doubt, firstDoubt), remember)
		o.until = now.Add(o.doubt)
	}
	m.seen[k] = o
}

// newProber makes the transport of all probes. Guests are hostile: no proxy that could see the addresses, one
// connection per request, HTTP/1.1 only, headers bounded, no body asked for.
func newProber() *http.Transport {
	return &http.Transport{
		Proxy:                  nil,
		DialContext:            dial,
		TLSClientConfig:        &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, NextProtos: []string{"http/1.1"}},
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return guest.NewQuietConn(conn), nil
}

// probeAll finds which TCP listeners speak HTTP, at the guest's leased address, or without one at the sockets of the host that were published
// for them, and nowhere else. Ports are probed side by side. What was not found out before ctx ends is left out.
func (c *Collector) probeAll(ctx context.Context, m *memory, address netip.Addr, all []vmm.Publication, ls []guest.Listener) map[probeKey]string {
	at := make(map[int]netip.AddrPort) // by the guest's port
	for _, p := range all {
		if !address.IsValid() && p.Protocol == "tcp" {
			at[int(p.Guest)] = p.Near()
		}
	}
	if !address.IsValid() && len(at) == 0 {
		return nil
	}
	schemes := m.recall(address, ls, c.now())
	asked := map[int][]probeKey{} // by port: 0.0.0.0 and :: are one probe
	var order []int
	for _, l := range ls {
		k := keyOf(l)
		if l.Protocol != "tcp" {
			continue
		}
		if _, ok := schemes[k]; ok {
			continue
		}
		if address.IsValid() {
			at[l.Port] = netip.AddrPortFrom(address, uint16(l.Port))
		} else if !at[l.Port].IsValid() {
			continue
		}
		if asked[l.Port] == nil {
			order = append(order, l.Port)
		}
		asked[l.Port] = append(asked[l.Port], k)
	}
	var mu sync.Mutex // guards schemes
	var wg sync.WaitGroup
	work := make(chan int)
	for range min(probesPerVM, len(order)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for port := range work {
				select {
				case c.probes <- struct{}{}:
				case <-ctx.Done():
					continue
				}
				scheme, sure := c.probe(ctx, at[port])
				<-c.probes
				if !sure && ctx.Err() != nil {
					continue // it was not given its time
				}
				mu.Lock()
				for _, k := range asked[port] {
					schemes[k] = scheme
					m.store(k, address, scheme, sure, c.now())
				}
				mu.Unlock()
			}
		}()
	}
	for _, port := range order {
		select {
		case work <- port:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(work)
	wg.Wait()
	return schemes
}

// probe tries https, then http. sure is false when the outcome may be another the next time: the port was slow or refused.
func (c *Collector) probe(ctx context.Context, at netip.AddrPort) (scheme string, sure bool) {
	sure = true
	for _, scheme := range []string{"https", "http"} {
		err := c.request(ctx, scheme, at)
		if err == nil {
			return scheme, true
		}
		var timeout net.Error
		if (errors.As(err, &timeout) && timeout.Timeout()) || ctx.Err() != nil ||
			errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) {
			sure = false
		}
	}
	return "", sure
}

// request sends GET / and succeeds with any HTTP status. Redirects are not followed, the body is not read.
func (c *Collector) request(ctx context.Context, scheme string, at netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	host := net.JoinHostPort(at.Addr().String(), strconv.Itoa(int(at.Port())))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+host+"/", nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "banger")
	resp, err := c.prober.RoundTrip(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
