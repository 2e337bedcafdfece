package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// vsockGuest is a guest with a port and, in place of vsock, a unix socket.
type vsockGuest struct {
	gate  *Gate
	port  string
	wire  *wire
	vsock string
	calls atomic.Int64 // connections over vsock that were admitted
}

func serveVsock(t *testing.T, g Agent) *vsockGuest {
	t.Helper()
	v := &vsockGuest{gate: new(Gate), vsock: filepath.Join(t.TempDir(), "v")}
	v.gate.Proved = func(net.Conn) { v.calls.Add(1) }
	h := Handler(g, streams)
	v.port, v.wire = servePort(t, v.gate.PortHandler(h), true)
	l, err := net.Listen("unix", v.vsock)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- v.gate.Serve(l, h) }()
	t.Cleanup(func() {
		l.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("the gate ended with %v", err)
		}
	})
	return v
}

// restart ends the agent's session on the port and what it remembers; the host is not told.
func (v *vsockGuest) restart() {
	v.gate.mu.Lock()
	v.gate.secret = nil
	v.gate.mu.Unlock()
	v.wire.again <- struct{}{}
}

// notes are the calls of a client's Note.
type notes struct {
	mu   sync.Mutex
	errs []error
}

func (n *notes) note(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.errs = append(n.errs, err)
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return fmt.Sprint(n.errs)
}

type dialer func(context.Context) (net.Conn, error)

// client makes a client of v that reaches its vsock by dial.
func (v *vsockGuest) client(t *testing.T, dial dialer) (*Client, *notes) {
	t.Helper()
	var n notes
	c := NewClient(dialUnix(v.port), &Vsock{Dial: dial, Note: n.note})
	t.Cleanup(func() { c.Close() })
	return c, &n
}

func ping(t *testing.T, c *Client) {
	t.Helper()
	if i, err := c.Ping(within(t, 20*time.Second)); err != nil || i.Hostname != "web" {
		t.Fatalf("%+v, %v", i, err)
	}
}

// stranger connects, sends text and returns what comes until the end.
func stranger(t *testing.T, path, text string) []byte {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, text) // its error shows below
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	got, err := io.ReadAll(conn)
	if isTimeout(err) {
		t.Fatalf("after %q the agent lets a stranger stay", text)
	}
	return got
}

// strangersPing is longer than a proof.
var strangersPing = "GET /ping HTTP/1.1\r\nHost: agent\r\n\r\n" + strings.Repeat("x", 2*proofLen)

func TestStrangers(t *testing.T) {
	noLeak(t)
	v := serveVsock(t, &answers{})
	if got := stranger(t, v.vsock, strangersPing); len(got) > 0 {
		t.Errorf("without a secret the agent says %q", got)
	}
	c, _ := v.client(t, dialUnix(v.vsock))
	ping(t, c)
	got := stranger(t, v.vsock, strangersPing)
	if len(got) > nonceLen || bytes.Contains(got, []byte("HTTP")) {
		t.Errorf("the agent says %q", got)
	}
	if got := v.calls.Load(); got != 1 {
		t.Errorf("%d connections were admitted, not the client's alone", got)
	}
}

func TestOverVsock(t *testing.T) {
	noLeak(t)
	v := serveVsock(t, &answers{})
	c, n := v.client(t, dialUnix(v.vsock))
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			ping(t, c)
		})
	}
	all.Wait()
	conn, err := c.Stream(within(t, 20*time.Second), "/echo", "hello")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := make([]byte, len("hello"))
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "hello" {
		t.Errorf("the stream has %q, %v", b, err)
	}
	if got := v.calls.Load(); got != 21 {
		t.Errorf("%d of 21 requests went over vsock", got)
	}
	if n.String() != "[<nil>]" {
		t.Errorf("noted: %s", n)
	}
	// The agent receives the secret on the port alone.
	other := handedSecret{make([]byte, 32)}
	_, err = c.do(within(t, 20*time.Second), http.MethodPost, "/vsock", other)
	var bad *badAnswer
	if !errors.As(err, &bad) || bad.status != http.StatusNotFound {
		t.Errorf("a secret over vsock: %v", err)
	}
}

// TestRestartedAgent: a restarted agent gets the secret again, and no request fails.
func TestRestartedAgent(t *testing.T) {
	noLeak(t)
	v := serveVsock(t, &answers{})
	c, n := v.client(t, dialUnix(v.vsock))
	ping(t, c)
	v.restart()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			ping(t, c)
		})
	}
	all.Wait()
	if got := v.calls.Load(); got != 21 || n.String() != "[<nil>]" {
		t.Errorf("%d of 21 requests went over vsock; noted: %s", got, n)
	}
	if c.vsock.handed != 2 {
		t.Errorf("handed over %d times", c.vsock.handed)
	}
	// The next daemon has a secret of its own.
	c.Close()
	next, _ := v.client(t, dialUnix(v.vsock))
	ping(t, next)
	if got := v.calls.Load(); got != 22 {
		t.Errorf("the next daemon's request went over the port")
	}
}

// TestPortServes: where vsock fails the port serves, and vsock then rests for a while.
func TestPortServes(t *testing.T) {
	heard := make(chan []byte, 10) // by a listener in the agent's place
	for _, tc := range []struct {
		name string
		dial func(t *testing.T) dialer
		note string
	}{
		{"nobody", func(t *testing.T) dialer {
			return dialUnix(filepath.Join(t.TempDir(), "none"))
		}, "no such file"},
		{"silent", func(t *testing.T) dialer {
			return hostile(t, func(c net.Conn) { io.Copy(io.Discard, c) })
		}, "no challenge came"},
		{"another", func(t *testing.T) dialer {
			return hostile(t, func(c net.Conn) {
				c.Write(make([]byte, nonceLen+proofLen))
				b, _ := io.ReadAll(c) // until the client leaves
				heard <- b
			})
		}, errUnproved.Error()},
		{"flood", func(t *testing.T) dialer {
			return hostile(t, func(c net.Conn) {
				for {
					if _, err := c.Write(make([]byte, 1<<20)); err != nil {
						return
					}
				}
			})
		}, errUnproved.Error()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noLeak(t)
			v := serveVsock(t, &answers{})
			var dials atomic.Int64
			dial := tc.dial(t)
			c, n := v.client(t, func(ctx context.Context) (net.Conn, error) {
				dials.Add(1)
				return dial(ctx)
			})
			for range 5 {
				ping(t, c)
			}
			if got := dials.Load(); got != 2 {
				t.Errorf("dialled %d times", got)
			}
			if !strings.Contains(n.String(), tc.note) || len(n.errs) != 1 {
				t.Errorf("noted: %s", n)
			}
			if v.calls.Load() != 0 {
				t.Error("vsock served")
			}
		})
	}
	for range 2 { // attempts
		if b := <-heard; len(b) != nonceLen+proofLen {
			t.Errorf("the client says %d bytes to a stranger: %q", len(b), b)
		}
	}
}

// TestOldAgent: an agent that knows no secrets answers anybody over vsock, so the port serves.
func TestOldAgent(t *testing.T) {
	noLeak(t)
	port, _ := serveGuest(t, &answers{}, true)
	v := &vsockGuest{port: port}
	c, n := v.client(t, func(context.Context) (net.Conn, error) {
		t.Error("dialled")
		return nil, net.ErrClosed
	})
	ping(t, c)
	ping(t, c)
	if n.String() != "["+errOldAgent.Error()+"]" {
		t.Errorf("noted: %s", n)
	}
}

// TestVsockAtBoot: while the guest boots, a request waits as long as its caller.
func TestVsockAtBoot(t *testing.T) {
	noLeak(t)
	c := NewClient(hostile(t, func(conn net.Conn) { io.Copy(io.Discard, conn) }), &Vsock{
		Dial: func(context.Context) (net.Conn, error) {
			t.Error("dialled")
			return nil, net.ErrClosed
		},
		Note: func(err error) { t.Errorf("noted: %v", err) },
	})
	defer c.Close()
	if _, err := c.Ping(within(t, 200*time.Millisecond)); !errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
}

// TestManyStrangers: silent connections, however many, neither keep the host out nor exceed
// MaxUnproved.
func TestManyStrangers(t *testing.T) {
	noLeak(t)
	v := serveVsock(t, &answers{})
	c, n := v.client(t, dialUnix(v.vsock))
	ping(t, c)
	var open []net.Conn
	for range 3 * MaxUnproved {
		conn, err := net.Dial("unix", v.vsock)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "x") // and not one byte more
		open = append(open, conn)
	}
	// The first is out when the last is in, and not only when its time is over.
	began := time.Now()
	open[0].SetDeadline(began.Add(20 * time.Second))
	if _, err := io.ReadAll(open[0]); isTimeout(err) || time.Since(began) > proofWait/2 {
		t.Errorf("the oldest stays for %v: %v", time.Since(began), err)
	}
	began = time.Now()
	ping(t, c)
	took := time.Since(began)
	if took > vsockWait || v.calls.Load() != 2 || n.String() != "[<nil>]" {
		t.Errorf("a request took %v, %d in all went over vsock; noted: %s", took, v.calls.Load(), n)
	}
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	if got := len(v.gate.unproved); got > MaxUnproved {
		t.Errorf("%d are kept", got)
	}
}

// TestSlowStranger: a peer that sends a byte now and then has no more than proofWait.
func TestSlowStranger(t *testing.T) {
	t.Parallel()
	v := serveVsock(t, &answers{})
	c, _ := v.client(t, dialUnix(v.vsock))
	ping(t, c)
	conn, err := net.Dial("unix", v.vsock)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, conn)
		ended <- err
	}()
	tick := time.NewTicker(proofWait / 20)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			conn.Write([]byte{'x'}) // its end is seen below
		case <-ended:
			if took := time.Since(began); took < proofWait/2 || took > 4*proofWait {
				t.Errorf("its connection lasted %v", took)
			}
			return
		}
	}
}

func TestBadSecrets(t *testing.T) {
	noLeak(t)
	v := serveVsock(t, &answers{})
	c := NewClient(dialUnix(v.port), nil)
	defer c.Close()
	for _, secret := range []any{
		nil, "x", handedSecret{}, handedSecret{make([]byte, 31)}, handedSecret{make([]byte, 33)},
		map[string]string{"secret": "%"}, map[string]string{"secret": strings.Repeat("A", 8<<10)},
	} {
		var bad *badAnswer
		_, err := c.do(within(t, 20*time.Second), http.MethodPost, "/vsock", secret)
		if !errors.As(err, &bad) || bad.status != http.StatusBadRequest {
			t.Errorf("%v: %v", secret, err)
		}
	}
	if got := stranger(t, v.vsock, ""); len(got) > 0 {
		t.Errorf("afterwards the agent says %q", got)
	}
}

// provedLiar makes a client of a guest that proves itself over vsock and then calls f.
func provedLiar(t *testing.T, f func(net.Conn)) *Client {
	t.Helper()
	v := serveVsock(t, &answers{})
	c, _ := v.client(t, hostile(t, func(conn net.Conn) {
		v.gate.mu.Lock()
		handed := v.gate.secret
		v.gate.mu.Unlock()
		if err := agentHandshake(conn, *handed); err == nil {
			f(conn)
		}
	}))
	return c
}
