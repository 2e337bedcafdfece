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

// How long the outcome of a probe holds for the same listener, also that it speaks no HTTP. A port
// that was slow or refused may still be starting: it is tried again soon, then less and less often.
const (
	remember   = time.Minute
	firstDoubt = time.Second
)

// probeKey identifies a listener in the memory of probes. A port of another process is another one.
type probeKey struct {
	port, pid int
	started   uint64
}

func keyOf(l guest.Listener) probeKey { return probeKey{l.Port, l.PID, l.Started} }

// memory holds the outcomes of earlier probes of one VM, for present listeners only: at most
// maxListeners.
type memory struct {
	mu   sync.Mutex
	seen map[probeKey]outcome // guarded by mu
}

// outcome is what a listener speaks: "https", "http" or "" for neither.
type outcome struct {
	address netip.Addr
	scheme  string
	until   time.Time
	doubt   time.Duration // how long it held, if it was not sure
}

// recall returns the schemes that still hold for the listeners at address, and forgets the others.
func (m *memory) recall(
	address netip.Addr, ls []guest.Listener, now time.Time,
) map[probeKey]string {
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

// newProber returns the transport of all probes. Guests are hostile: no proxy that could see the
// addresses, one connection for each request, HTTP/1.1 only, bounded headers, no body.
func newProber() *http.Transport {
	return &http.Transport{
		Proxy:       nil,
		DialContext: dial,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10,
			NextProtos: []string{"http/1.1"}},
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

// probeAll returns the schemes of the TCP listeners. It tries the guest's leased address, else the
// host's sockets that are published for them, and nothing else. Ports are probed side by
// side. Outcomes that are missing when ctx ends are left out.
func (c *Collector) probeAll(
	ctx context.Context, m *memory, address netip.Addr, all []vmm.Publication, ls []guest.Listener,
) map[probeKey]string {
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
					continue // ctx cut its time short
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

// probe tries https, then http. sure is false when the port was slow or refused: the next outcome
// may differ.
func (c *Collector) probe(ctx context.Context, at netip.AddrPort) (scheme string, sure bool) {
	sure = true
	for _, scheme := range []string{"https", "http"} {
		err := c.getRoot(ctx, scheme, at)
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

// getRoot sends GET / and succeeds with any HTTP status. It follows no redirect and reads no body.
func (c *Collector) getRoot(ctx context.Context, scheme string, at netip.AddrPort) error {
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
