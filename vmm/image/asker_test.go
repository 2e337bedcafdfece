package image

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"banger/vmm"
	"banger/vmm/image/rootfs"
)

// trusting takes every certificate: the tests' servers have none for their addresses.
func trusting() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	return t
}

func TestAllowedAddresses(t *testing.T) {
	for _, c := range []struct {
		registry, host, address string
		inside, want            bool
	}{
		{"registry.example", "cdn.example", "203.0.113.5", false, true},
		{"registry.example", "cdn.example", "2001:db8::5", false, true},
		{"registry.example", "registry.example", "10.1.2.3", false, true}, // a company's own
		{"registry.example:5000", "registry.example", "fd00::5", false, true},
		{"registry.example", "auth.example", "10.1.2.3", false, false},
		{"registry.example", "auth.example", "10.1.2.3", true, true},
		{"registry.example", "auth.example", "100.64.1.1", false, false},
		{"registry.example", "auth.example", "::ffff:192.168.1.1", false, false},
		{"registry.example", "auth.example", "64:ff9b::10.1.2.3", false, false},
		{"registry.example", "registry.example", "127.0.0.1", true, false},
		{"registry.example", "registry.example", "::ffff:127.0.0.1", true, false},
		{"registry.example", "registry.example", "64:ff9b::127.0.0.1", true, false},
		{"registry.example", "localhost", "::1", true, false},
		{"registry.example", "registry.example", "169.254.169.254", true, false},
		{"registry.example", "registry.example", "fe80::1%eth0", true, false},
		{"registry.example", "registry.example", "0.0.0.0", true, false},
		{"registry.example", "registry.example", "0.1.2.3", true, false},
		{"registry.example", "registry.example", "::", true, false},
		{"registry.example", "registry.example", "224.0.0.1", true, false},
		{"registry.example", "registry.example", "ff02::1", true, false},
		{"registry.example", "registry.example", "255.255.255.255", true, false},
		{"localhost:5000", "localhost", "127.0.0.1", false, true},
		{"127.0.0.1:5000", "localhost", "::1", false, true},
		{"localhost:5000", "evil.example", "127.0.0.1", false, false},
		{"localhost:5000", "localhost", "0.0.0.0", false, false},
	} {
		a := newAsker(trusting(), c.registry)
		a.inside.Store(c.inside)
		if err := a.allow(c.host, netip.MustParseAddr(c.address)); (err == nil) != c.want {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// The address that a name was resolved to is the one that is looked at and connected to.
func TestDialedAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for registry, want := range map[string]bool{"registry.example": false, "localhost": true} {
		c, err := newAsker(trusting(), registry).dial(context.Background(), "tcp", net.JoinHostPort("localhost", port))
		if (err == nil) != want {
			t.Errorf("from %s: error %v", registry, err)
		}
		if err == nil {
			c.Close()
		}
	}
}

// outer is an address of this host beside the loopback's.
func outer(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("the host has no address but the loopback's: ip addr add 192.0.2.1/32 dev lo")
	return ""
}

// serve answers at an address of the host, with TLS or without, and counts the requests.
func serve(t *testing.T, ip string, secure bool, h http.HandlerFunc) (string, *atomic.Int64) {
	t.Helper()
	hits := new(atomic.Int64)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		h(w, r)
	}))
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	s.Listener.Close()
	s.Listener = l
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s.URL, hits
}

// asked builds an image of the registry at a URL and gives why it failed.
func asked(t *testing.T, registry string) string {
	t.Helper()
	s, _ := openTest(t, filepath.Join(t.TempDir(), "images"))
	s.transport = trusting()
	number := create(t, s, "app")
	_, host, _ := strings.Cut(registry, "://")
	if err := s.Build(context.Background(), number, host+"/app:x", me(t)); err != nil {
		t.Fatal(err)
	}
	_, _ = s.Wait(context.Background(), number) // what it says is in the info
	i, _ := s.Info(number)
	if i.Status != vmm.ImageFailed {
		t.Errorf("it is %s", i.Status)
	}
	return i.Reason
}

// A registry cannot have root ask what listens on this host only.
func TestRegistryLeadsToTheHost(t *testing.T) {
	ip := outer(t)
	plain, plainHits := serve(t, "127.0.0.1", false, func(http.ResponseWriter, *http.Request) {})
	secure, secureHits := serve(t, "127.0.0.1", true, func(http.ResponseWriter, *http.Request) {})
	same, sameHits := serve(t, ip, false, func(http.ResponseWriter, *http.Request) {})
	_, port, _ := strings.Cut(strings.TrimPrefix(secure, "https://"), ":")
	const noTLS, foreign = "without TLS", "only the image's own source"
	// go-containerregistry refuses most addresses of a token's server before it asks them.
	const noPlainToken, noPrivateToken = "not allowed for a secure registry", "private or link-local address"
	for _, c := range []struct{ to, redirect, token string }{
		{plain, noTLS, noPlainToken},
		{same, noTLS, noPlainToken},
		{secure, foreign, noPrivateToken},
		{"https://localhost:" + port, foreign, foreign},
		{"https://[::ffff:127.0.0.1]:" + port, foreign, noPrivateToken},
		{"https://0.0.0.0:" + port, foreign, noPrivateToken},
	} {
		redirecting, _ := serve(t, ip, true, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, c.to+"/x", http.StatusFound)
		})
		if got := asked(t, redirecting); !strings.Contains(got, c.redirect) {
			t.Errorf("a redirect to %s: %s", c.to, got)
		}
		wanting, _ := serve(t, ip, true, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x"`, c.to))
			w.WriteHeader(http.StatusUnauthorized)
		})
		if got := asked(t, wanting); !strings.Contains(got, c.token) {
			t.Errorf("a token of %s: %s", c.to, got)
		}
	}
	if plainHits.Load()+secureHits.Load()+sameHits.Load() != 0 {
		t.Errorf("%d, %d and %d requests came", plainHits.Load(), secureHits.Load(), sameHits.Load())
	}
	// What the source itself names may lead to itself.
	moved, hits := serve(t, "127.0.0.1", false, func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) })
	local, _ := serve(t, "127.0.0.1", false, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, moved+r.URL.Path, http.StatusFound) })
	if got := asked(t, local); hits.Load() == 0 {
		t.Errorf("a redirect within the host: %s", got)
	}
}

// Nothing that is no layer is long, whatever it stands for.
func TestEndlessAnswers(t *testing.T) {
	var sent atomic.Int64
	endless := func(w http.ResponseWriter) {
		b := bytes.Repeat([]byte("x"), 64<<10)
		for {
			n, err := w.Write(b)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	}
	token := `{"token":"`
	for what, h := range map[string]http.HandlerFunc{
		"ping": func(w http.ResponseWriter, r *http.Request) { endless(w) },
		"manifest": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v2/" {
				endless(w)
			}
		},
		"error": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v2/" {
				w.WriteHeader(http.StatusForbidden)
				endless(w)
			}
		},
		"token": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				io.WriteString(w, token)
				endless(w)
				return
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="x"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		},
		"header": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 1<<20))
		},
	} {
		sent.Store(0)
		url, _ := serve(t, "127.0.0.1", false, h)
		got := asked(t, url)
		if sent.Load() > 32<<20 {
			t.Errorf("%s: %d bytes were taken", what, sent.Load())
		}
		if what != "ping" && what != "error" && !strings.Contains(got, "byte") { // of those two nothing is wanted
			t.Errorf("%s: %s", what, got)
		}
	}
}

// A layer may be long but not slow; other answers are neither.
func TestSlowLayer(t *testing.T) {
	const size = 2 * rootfs.MaxJSON
	digest := rootfs.Sum(nil)
	url, _ := serve(t, "127.0.0.1", false, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v2/app/blobs/" + digest:
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "/elsewhere", "/other":
			w.Write(make([]byte, size))
		case "/v2/slow/blobs/" + digest:
			pace := time.NewTicker(5 * time.Millisecond)
			defer pace.Stop()
			for r.Context().Err() == nil {
				w.Write([]byte("x"))
				w.(http.Flusher).Flush()
				<-pace.C
			}
		}
	})
	_, host, _ := strings.Cut(url, "://")
	a := newAsker(trusting(), host)
	a.stall = 200 * time.Millisecond
	a.layers.Store(digest, int64(size))
	defer a.direct.CloseIdleConnections()
	client := http.Client{Transport: a}
	for path, want := range map[string]string{"/v2/app/blobs/" + digest: "", "/v2/slow/blobs/" + digest: "too slow", "/other": "more than"} {
		begun := time.Now()
		r, err := client.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r.Body)
		r.Body.Close()
		switch {
		case want == "" && (err != nil || n != size):
			t.Errorf("%s: %d bytes, error %v", path, n, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: error %v", path, err)
		}
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("%s: it took %v", path, took)
		}
	}
}
