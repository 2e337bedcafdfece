package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"banger/vmm/image/rootfs"
)

// Limits of a registry's answers.
const (
	smallTime   = time.Minute      // for an answer other than a layer, from the request to its end
	stallTime   = 30 * time.Second // in which stallBytes of a layer must arrive
	stallBytes  = 256 << 10
	maxHeader   = 256 << 10
	fetchTime   = 6 * time.Hour // for all layers of an image
	dialTimeout = 30 * time.Second
)

// asker is the transport to one registry and to the hosts to which that sends it, for tokens or by
// redirects. The reference may name any host. The registry may name public hosts only.
type asker struct {
	host   string // of the reference, without a port
	local  bool   // the reference names this host's own loopback
	direct *http.Transport
	stall  time.Duration

	layers  sync.Map    // sizes of the manifest's layers, by digest
	inside  atomic.Bool // the reference's host has answered from a private address
	proxies sync.Map    // addresses of the proxies that the daemon's environment names
}

// newAsker returns the transport for a reference's host, which may have a port.
func newAsker(base *http.Transport, registry string) *asker {
	host := registry
	if h, _, err := net.SplitHostPort(registry); err == nil {
		host = h
	}
	a := &asker{direct: base.Clone(), stall: stallTime}
	a.host = strings.ToLower(strings.Trim(host, "[]"))
	a.local = loopback(a.host)
	a.direct.ResponseHeaderTimeout = smallTime
	a.direct.MaxResponseHeaderBytes = maxHeader
	a.direct.DisableCompression = true // the limits count sent bytes
	a.direct.DialContext = a.dial
	a.direct.Proxy = func(r *http.Request) (*url.URL, error) {
		u, err := base.Proxy(r)
		if u != nil {
			a.proxies.Store(u.Host, true)
		}
		return u, err
	}
	return a
}

// Address ranges for which netip has no method.
var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
	broadcast   = netip.MustParsePrefix("240.0.0.0/4") // and the reserved addresses
	shared      = netip.MustParsePrefix("100.64.0.0/10")
	translated  = netip.MustParsePrefix("64:ff9b::/96") // an IPv4 address behind a translator
)

// allow refuses an address to which a host of the registry's choice must not lead.
func (a *asker) allow(host string, address netip.Addr) error {
	address = address.Unmap().WithZone("")
	if translated.Contains(address) {
		b := address.As16()
		address = netip.AddrFrom4([4]byte(b[12:]))
	}
	ok := true
	switch {
	case address.IsLoopback():
		ok = a.local && loopback(host)
	case address.IsUnspecified(), address.IsMulticast(), address.IsLinkLocalUnicast(),
		thisNetwork.Contains(address), broadcast.Contains(address):
		ok = false
	case private(address):
		ok = host == a.host || a.local || a.inside.Load()
	}
	if ok {
		return nil
	}
	return fmt.Errorf("%.200q is %s, where only the image's own source may lead", host, address)
}

func private(address netip.Addr) bool {
	address = address.Unmap()
	return address.IsPrivate() || shared.Contains(address)
}

// dial connects to an allowed address. It checks the resolved address to which it then connects.
func (a *asker) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: dialTimeout}
	if _, proxy := a.proxies.Load(address); !proxy {
		d.Control = func(_, resolved string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(resolved)
			if err != nil {
				return err
			}
			return a.allow(strings.ToLower(host), to.Addr())
		}
	}
	return d.DialContext(ctx, network, address)
}

// check refuses a request by its URL alone: a proxy resolves the host elsewhere.
func (a *asker) check(r *http.Request) error {
	host := strings.ToLower(r.URL.Hostname())
	switch {
	case r.URL.Scheme == "https":
	case r.URL.Scheme != "http" || !a.local || !loopback(host):
		return fmt.Errorf("%.200q is not asked without TLS", r.URL.Host)
	case r.Response != nil && r.Response.Request.URL.Scheme != "http":
		return fmt.Errorf("a redirect from TLS to %.200q without it is not followed", r.URL.Host)
	}
	if address, err := netip.ParseAddr(host); err == nil {
		return a.allow(host, address)
	}
	if loopback(host) {
		return a.allow(host, netip.IPv6Loopback())
	}
	return nil
}

// RoundTrip implements http.RoundTripper.
func (a *asker) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := a.check(r); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	body := &answer{cancel: cancel, most: rootfs.MaxJSON}
	body.late = time.AfterFunc(smallTime, func() {
		cancel(&brokenError{fmt.Errorf("%.200q did not answer within %v", r.URL.Host, smallTime)})
	})
	var from netip.AddrPort
	trace := httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		from, _ = netip.ParseAddrPort(i.Conn.RemoteAddr().String())
	}}
	response, err := a.direct.RoundTrip(r.WithContext(httptrace.WithClientTrace(ctx, &trace)))
	if err != nil {
		body.end()
		return nil, cause(ctx, err)
	}
	proxy, err := a.direct.Proxy(r)
	itself := err == nil && proxy == nil && strings.ToLower(r.URL.Hostname()) == a.host
	if itself && private(from.Addr()) {
		a.inside.Store(true)
	}
	body.ctx, body.ReadCloser = ctx, response.Body
	if size, ok := a.layer(r); ok && (response.StatusCode == http.StatusOK ||
		response.StatusCode == http.StatusPartialContent) {
		body.most = size
		body.late.Stop()
		go body.watch(a.stall)
	}
	response.Body = body
	return response, nil
}

// layer returns the size of the layer that a request, perhaps redirected, asks for.
func (a *asker) layer(r *http.Request) (int64, bool) {
	for r.Response != nil {
		r = r.Response.Request
	}
	_, digest, ok := strings.Cut(r.URL.Path, "/blobs/")
	size, known := a.layers.Load(digest)
	if !ok || !known {
		return 0, false
	}
	return size.(int64), true
}

// cause returns the reason why ctx ended, if there is one, else err.
func cause(ctx context.Context, err error) error {
	if why := context.Cause(ctx); why != nil && !errors.Is(why, ctx.Err()) {
		return why
	}
	return err
}

// errLong is the error of an answer that is longer than it may be.
var errLong = errors.New("the registry's answer is too long")

// answer is the body of an answer, bounded in bytes and in time.
type answer struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	late   *time.Timer
	most   int64
	read   int64
	since  atomic.Int64 // bytes since the last check of watch
}

// watch ends a layer that arrives too slowly. It returns when the body is closed.
func (b *answer) watch(every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-t.C:
			if b.since.Swap(0) < stallBytes {
				b.cancel(&brokenError{fmt.Errorf("fewer than %d bytes in %v: the registry is too slow",
					stallBytes, every)})
			}
		}
	}
}

func (b *answer) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.since.Add(int64(n))
	if b.read += int64(n); b.read > b.most {
		return 0, fmt.Errorf("%w: more than %d bytes", errLong, b.most)
	}
	if err != nil && err != io.EOF {
		err = cause(b.ctx, err)
	}
	return n, err
}

func (b *answer) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}

func (b *answer) end() {
	b.late.Stop()
	b.cancel(nil)
}
