package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/yamux"
)

// answers is a guest that says what it is told to.
type answers struct {
	Agent
	listeners []Listener
	hang      chan struct{}
}

func (a *answers) Ping(context.Context) (Info, error) {
	return Info{Version: "1", Hostname: "web"}, nil
}
func (a *answers) Listeners(context.Context) ([]Listener, error) { return a.listeners, nil }
func (a *answers) Stats(ctx context.Context) (Stats, error) {
	select {
	case <-a.hang:
	case <-ctx.Done():
	}
	return Stats{MemTotal: 7}, nil
}
func (a *answers) PowerOff(context.Context) error { return nil }

// wire is a virtio-serial port: a stream that outlives the host's connections.
type wire struct {
	in    chan []byte
	mu    sync.Mutex
	host  net.Conn
	stale []byte // what the next host reads first
	rest  []byte
	end   chan struct{}
	again chan struct{} // the agent is restarted
}

var errRestart = errors.New("the agent is restarted")

func (w *wire) Read(p []byte) (int, error) {
	if len(w.rest) == 0 {
		select {
		case w.rest = <-w.in:
		case <-w.again:
			return 0, errRestart
		case <-w.end:
			return 0, net.ErrClosed
		}
		if w.rest == nil {
			return 0, io.EOF
		}
	}
	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	host := w.host
	w.mu.Unlock()
	if host != nil {
		host.Write(p)
	}
	return len(p), nil
}

// serveGuest makes a guest behind a unix socket, as QEMU's chardev does. With
// quiet the guest is not told that the host went.
func serveGuest(t *testing.T, g Agent, quiet bool) (path string, w *wire) {
	t.Helper()
	return servePort(t, Handler(g, streams), quiet)
}

func servePort(t *testing.T, h http.Handler, quiet bool) (path string, w *wire) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	w = &wire{in: make(chan []byte), end: make(chan struct{}), again: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Add(2)
	go func() {
		defer wg.Done()
		for ServePort(w, h) == errRestart {
		}
	}()
	go func() {
		defer wg.Done()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			w.host = conn
			conn.Write(w.stale)
			w.mu.Unlock()
			for {
				b := make([]byte, 1000)
				n, err := conn.Read(b)
				if err != nil {
					break
				}
				select {
				case w.in <- b[:n]:
				case <-w.end:
				}
			}
			if !quiet {
				select {
				case w.in <- nil:
				case <-w.end:
				}
			}
			w.mu.Lock()
			w.host = nil
			w.mu.Unlock()
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		close(w.end)
		w.mu.Lock()
		if w.host != nil {
			w.host.Close()
		}
		w.mu.Unlock()
		wg.Wait()
	})
	return path, w
}

func dialUnix(path string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// noLeak fails when goroutines are left once the test's cleanups have run.
func noLeak(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		end := time.Now().Add(10 * time.Second)
		for ; runtime.NumGoroutine() > before; runtime.Gosched() {
			if time.Now().After(end) {
				b := make([]byte, 1<<20)
				t.Fatalf("goroutines left:\n%s", b[:runtime.Stack(b, true)])
			}
		}
	})
}

func TestReconnects(t *testing.T) {
	for _, quiet := range []bool{false, true} {
		t.Run(fmt.Sprintf("quiet=%v", quiet), func(t *testing.T) {
			noLeak(t)
			long := Listener{Protocol: "tcp", Port: 80, Command: strings.Repeat("x", 5000)}
			g := &answers{hang: make(chan struct{}), listeners: []Listener{long}}
			path, w := serveGuest(t, g, quiet)
			w.mu.Lock()
			w.stale = bytes.Repeat([]byte("HTTP/1.1 200 OK\xff\xfebanger-"), 5000)
			w.mu.Unlock()
			for range 10 {
				c := NewClient(dialUnix(path), nil)
				if _, err := c.Ping(within(t, 10*time.Second)); err != nil {
					t.Fatal(err)
				}
				ls, err := c.Listeners(within(t, 10*time.Second))
				if err != nil || len(ls) != 1 || len(ls[0].Command) != maxString {
					t.Fatalf("%v, %v", ls, err)
				}
				// A request is under way when the host goes.
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error)
				go func() { _, err := c.Stats(ctx); done <- err }()
				if _, err := c.Ping(within(t, 10*time.Second)); err != nil {
					t.Fatal(err)
				}
				c.Close()
				if err := <-done; err == nil {
					t.Fatal("a request outlived its client")
				}
				cancel()
			}
		})
	}
}

func TestTimeoutSparesOthers(t *testing.T) {
	noLeak(t)
	g := &answers{hang: make(chan struct{})}
	path, _ := serveGuest(t, g, false)
	c := NewClient(dialUnix(path), nil)
	defer c.Close()
	if _, err := c.Ping(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	other := make(chan error)
	go func() { _, err := c.Stats(within(t, 30*time.Second)); other <- err }()
	cancel()
	if _, err := c.Stats(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(g.hang)
	if err := <-other; err != nil {
		t.Fatal(err)
	}
}

// hostile listens and gives every connection to f.
func hostile(t *testing.T, f func(net.Conn)) func(context.Context) (net.Conn, error) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer conn.Close(); f(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return dialUnix(path)
}

func TestHostile(t *testing.T) {
	silent := func(c net.Conn) { io.Copy(io.Discard, c) }
	body := func(s string) func(net.Conn) {
		return func(c net.Conn) {
			c.Read(make([]byte, 4096))
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(s), s)
		}
	}
	endless := func(c net.Conn) {
		c.Read(make([]byte, 4096))
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		for {
			if _, err := c.Write(bytes.Repeat([]byte{'['}, 4096)); err != nil {
				return
			}
		}
	}
	headers := func(c net.Conn) {
		c.Read(make([]byte, 4096))
		io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		for {
			if _, err := c.Write([]byte("a: b\r\n")); err != nil {
				return
			}
		}
	}
	for _, tc := range []struct {
		name   string
		proved bool // over vsock
		f      func(net.Conn)
		want   error
	}{
		{"silent", true, silent, ErrTimeout},
		{"silent port", false, silent, ErrTimeout},
		{"endless", true, endless, nil},
		{"headers", true, headers, nil},
		{"broken", true, body(`[{"port":`), nil},
		{"deep", true, body(strings.Repeat("[", 1<<20)), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noLeak(t)
			c := NewClient(hostile(t, tc.f), nil)
			if tc.proved {
				c = provedLiar(t, tc.f)
			}
			t.Cleanup(func() { c.Close() })
			d := 10 * time.Second
			if tc.want != nil {
				d = 200 * time.Millisecond
			}
			_, err := c.Listeners(within(t, d))
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Fatalf("error %v, want %v", err, tc.want)
			}
		})
	}
}

// TestBrokenSession has agents that echo the marker, take a request and then misbehave below HTTP.
func TestBrokenSession(t *testing.T) {
	endless := func(frame ...byte) func(net.Conn) {
		return func(c net.Conn) {
			for b := bytes.Repeat(frame, 1000); ; {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}
	}
	drip := func(c net.Conn) {
		session, err := yamux.Server(c, muxConfig())
		if err != nil {
			t.Error(err)
			return
		}
		defer session.Close()
		stream, err := session.Accept()
		for text := "HTTP/1.1 200 OK\r\n\r\n["; err == nil; text = "[" {
			_, err = io.WriteString(stream, text)
			time.Sleep(10 * time.Millisecond) // the pace
		}
	}
	request := func(then func(net.Conn)) func(net.Conn) {
		return func(c net.Conn) {
			c.Read(make([]byte, 4096))
			then(c)
		}
	}
	for _, tc := range []struct {
		name string
		then func(net.Conn)
		want error // nil: a refusal
	}{
		{"pings", request(endless(0, framePing, 0, flagSYN, 0, 0, 0, 0, 0, 0, 0, 1)), nil},
		{"streams", request(endless(0, frameData, 0, flagSYN, 0, 0, 0, 2, 0, 0, 0, 1, 'x')), nil},
		{"garbage", request(endless('g')), nil},
		{"gone", request(func(net.Conn) {}), ErrNotRunning},
		{"drip", drip, ErrTimeout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noLeak(t)
			c := NewClient(hostile(t, func(conn net.Conn) {
				marker := make([]byte, markerLen)
				if _, err := io.ReadFull(conn, marker); err == nil {
					conn.Write(marker)
					tc.then(conn)
				}
			}), nil)
			t.Cleanup(func() { c.Close() })
			limit := 10 * time.Second
			if tc.want == ErrTimeout {
				limit = 200 * time.Millisecond
			}
			began := time.Now()
			_, err := c.Listeners(within(t, limit))
			var bad *badAnswer
			ok := errors.Is(err, tc.want)
			if tc.want == nil {
				ok = errors.As(err, &bad)
			}
			if !ok {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			if needed := time.Since(began); needed > 5*time.Second {
				t.Errorf("it took %v", needed)
			}
		})
	}
}

// TestFrames cuts what an agent sends at every place: whether it is allowed does not depend on how
// it arrives.
func TestFrames(t *testing.T) {
	// Data that looks like a ping, in a frame of its own length.
	ping := []byte{0, framePing, 0, flagSYN, 0, 0, 0, 0, 0, 0, 0, 1}
	data := append([]byte{0, frameData, 0, 0, 0, 0, 0, 1, 0, 0, 0, 12}, ping...)
	for cut := range len(data) + len(ping) {
		var c hostConn
		all := append(bytes.Clone(data), ping...)
		if first := c.invited(all[:cut]); !first {
			t.Errorf("cut at %d: the first %d bytes are refused", cut, cut)
		}
		if c.invited(all[cut:]) {
			t.Errorf("cut at %d: a ping is allowed", cut)
		}
	}
}

// TestFindMarker: the last whole one counts, wherever it is and whatever looks like one.
func TestFindMarker(t *testing.T) {
	var markers [2]string
	for i := range markers {
		m, err := newMarker()
		if err != nil {
			t.Fatal(err)
		}
		markers[i] = string(m)
	}
	a, b := markers[0], markers[1]
	broken := a[:markerLen-1] + "x"
	for _, x := range []struct {
		text, marker string
		after        int
	}{
		{"", "", 0},
		{"\xff\xfe", "", 0},
		{a[:markerLen-1], "", 0},
		{a, a, markerLen},
		{"before" + a + "after", a, 6 + markerLen},
		{a + b, b, 2 * markerLen},
		{a + "between" + b[:markerLen-1], a, markerLen},
		{a + broken, a, markerLen},
		{broken + b, b, 2 * markerLen},
		{a[:20] + b, b, 20 + markerLen},
		{magic + magic + b + magic, b, 2*len(magic) + markerLen},
	} {
		marker, after := findMarker([]byte(x.text))
		if string(marker) != x.marker || after != x.after {
			t.Errorf("in %q it finds %q to %d, not %q to %d",
				x.text, marker, after, x.marker, x.after)
		}
	}
}

func TestGone(t *testing.T) {
	c := NewClient(dialUnix(filepath.Join(t.TempDir(), "none")), nil)
	defer c.Close()
	if _, err := c.Ping(within(t, 10*time.Second)); !errors.Is(err, ErrNotRunning) {
		t.Fatal(err)
	}
}

func TestManyListeners(t *testing.T) {
	b := []byte("[" + strings.Repeat(`{"port":1},`, 99_999) + `{"port":1}]`)
	if ls, err := parseListeners(b); err != nil || len(ls) != maxListeners {
		t.Fatalf("%d, %v", len(ls), err)
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`[{"protocol":"tcp","port":80}]`))
	f.Add([]byte(`{"uptime":1e308,"load1":1e308}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, _ := parseInfo(b)
		texts := []string{i.Version, i.Kernel, i.Hostname}
		s, err := parseStats(b)
		if min(s.MemTotal, s.MemAvailable, s.DiskUsed, s.DiskTotal, int64(s.Procs)) < 0 ||
			min(s.Load1, s.Uptime, i.Uptime) < 0 || max(s.Load1, s.Uptime, i.Uptime) > maxFloat {
			t.Fatalf("%+v, %v", s, err)
		}
		ls, _ := parseListeners(b)
		if len(ls) > maxListeners {
			t.Fatal(len(ls))
		}
		for _, l := range ls {
			texts = append(texts, l.Protocol, l.Address, l.Process, l.Command)
		}
		for _, text := range texts {
			if len(text) > maxString || !utf8.ValidString(text) {
				t.Fatalf("%q", text)
			}
		}
	})
}

// streams are what the guests of these tests serve beside answers.
var streams = map[string]StreamHandler{
	"/echo": func(request json.RawMessage) (func(net.Conn), error) {
		var word string
		if err := json.Unmarshal(request, &word); err != nil || word == "no" {
			return nil, errors.New("there is no echo")
		}
		return func(conn net.Conn) {
			defer conn.Close()
			io.WriteString(conn, word)
			io.Copy(conn, conn)
		}, nil
	},
}

func TestStream(t *testing.T) {
	noLeak(t)
	path, _ := serveGuest(t, &answers{}, true)
	c := NewClient(dialUnix(path), nil)
	var bad *badAnswer
	_, err := c.Stream(within(t, 10*time.Second), "/echo", "no")
	if !errors.As(err, &bad) || !strings.Contains(err.Error(), "there is no echo") {
		t.Errorf("a refused stream: %v", err)
	}
	if _, err := c.Stream(within(t, 10*time.Second), "/none", nil); !errors.As(err, &bad) {
		t.Errorf("a stream that is not served: %v", err)
	}
	var open []net.Conn
	sent := bytes.Repeat([]byte("0123456789abcdef\x00\xff"), 60_000) // more than a window of yamux
	for range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		conn, err := c.Stream(ctx, "/echo", "hello ")
		cancel() // bounds the opening only
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
		go conn.Write(sent) // Read tells how it ended
		got := make([]byte, len("hello ")+len(sent))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello "+string(sent) {
			t.Fatalf("%d bytes came back as %d: %v", len(sent), len(got), err)
		}
		if _, err := c.Ping(within(t, 10*time.Second)); err != nil {
			t.Fatalf("beside a stream: %v", err)
		}
	}
	open[0].Close()
	c.Close()
	for _, conn := range open {
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("a stream outlived its client")
		}
		conn.Close()
	}
}
