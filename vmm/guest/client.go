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
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	maxListeners = 4096
	maxString    = 4 << 10
	maxDiscard   = 16 << 20 // bytes of an earlier session before the nonce comes back
	// echoWait is how long an unanswered marker stands before the channel is
	// dialled anew: an agent that was restarted has lost it.
	echoWait = 15 * time.Second
)

// Client asks the agent of one guest. It implements [Agent]; all methods
// may be called from many goroutines.
type Client struct {
	dial  func(ctx context.Context) (net.Conn, error) // the port
	vsock *vsockWay                                   // nil where there is none
	http  *http.Transport
	ctx   context.Context // ends with Close
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	session *hostSession
	opening *opening
}

// hostSession is a session after its reset.
type hostSession struct {
	*yamux.Session
	conn     *hostConn
	answered atomic.Int64 // when an answer last came, UnixNano
	silent   atomic.Bool  // dropped because no answer came
}

// why says what it means that a request failed before its time was over: the machine is gone (err as it is), another
// request had waited in vain and gave the session up, or the agent broke it.
func (s *hostSession) why(err error) error {
	switch {
	case s.conn.gone.Load():
		return err
	case s.silent.Load():
		return ErrTimeout
	case s.conn.uninvited.Load():
		err = errUninvited
	}
	return &refusal{text: "it does not keep to the protocol: " + err.Error()}
}

// opening is one attempt at a session, shared by all who wait for it.
type opening struct {
	done    chan struct{}
	session *hostSession
	err     error
}

// New makes a client of the agent whose virtio-serial port dial reaches. It keeps one connection
// there for all requests, except those that go over vsock, if that is not nil. It dials at the
// first request.
func New(dial func(ctx context.Context) (net.Conn, error), vsock *Vsock) *Client {
	c := &Client{dial: dial}
	if vsock != nil {
		way, err := newVsockWay(vsock)
		if err == nil {
			c.vsock = way
		} else {
			vsock.Note(err)
		}
	}
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.http = &http.Transport{
		DialContext:            c.connect,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 16 << 10,
	}
	return c
}

// Close ends the session and every request under way, and returns when the client's goroutines have ended.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	s := c.session
	c.session = nil
	c.mu.Unlock()
	c.stop()
	if s != nil {
		s.Close()
	}
	c.wg.Wait()
	c.http.CloseIdleConnections()
	return nil
}

func (c *Client) connect(ctx context.Context, _, _ string) (net.Conn, error) {
	if p, ok := ctx.Value(provedKey{}).(*provedConn); ok {
		conn, err := p.take()
		if err != nil {
			return nil, err
		}
		return NewQuietConn(conn), nil
	}
	s, ok := ctx.Value(sessionKey{}).(*hostSession)
	if !ok {
		return nil, net.ErrClosed
	}
	stream, err := s.OpenStream()
	if err != nil {
		return nil, err
	}
	return NewQuietConn(hostStream{stream}), nil
}

// hostStream ends its reads when it is closed; yamux alone lets them go on, to hear what else the far end has to say, until
// StreamCloseTimeout: with an agent that sends a byte now and then nobody's wait would end in time.
type hostStream struct{ *yamux.Stream }

func (s hostStream) Close() error {
	return errors.Join(s.SetReadDeadline(time.Now()), s.Stream.Close())
}

// sessionKey and provedKey carry the session or connection of a request to connect.
type (
	sessionKey struct{}
	provedKey  struct{}
)

// acquire gives the session, opening one if there is none. ctx bounds the waiting only.
func (c *Client) acquire(ctx context.Context) (*hostSession, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, net.ErrClosed
	}
	if c.session != nil && !c.session.IsClosed() {
		s := c.session
		c.mu.Unlock()
		return s, nil
	}
	o := c.opening
	if o == nil {
		o = &opening{done: make(chan struct{})}
		c.opening = o
		c.wg.Add(1)
		go c.open(o)
	}
	c.mu.Unlock()
	select {
	case <-o.done:
		return o.session, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *Client) open(o *opening) {
	defer c.wg.Done()
	for {
		o.session, o.err = c.reset()
		if !errors.Is(o.err, context.DeadlineExceeded) || c.ctx.Err() != nil {
			break
		}
	}
	c.mu.Lock()
	c.opening = nil
	if o.err == nil && c.closed {
		o.session.Close()
		o.session, o.err = nil, net.ErrClosed
	}
	c.session = o.session
	c.mu.Unlock()
	close(o.done)
}

// reset dials and waits until the agent echoes the marker. context.DeadlineExceeded after echoWait.
func (c *Client) reset() (*hostSession, error) {
	ctx, cancel := context.WithTimeout(c.ctx, echoWait)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	rest, err := exchange(conn)
	if !stop() {
		return nil, ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	h := &hostConn{Conn: conn, rest: rest}
	s, err := yamux.Client(h, muxConfig())
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &hostSession{Session: s, conn: h}, nil
}

// exchange sends a marker and discards what comes before its echo. It gives what came after.
func exchange(conn net.Conn) ([]byte, error) {
	marker, err := newMarker()
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(marker); err != nil {
		return nil, err
	}
	buf := make([]byte, 32<<10)
	var tail []byte
	for total := 0; total < maxDiscard; {
		n, err := conn.Read(buf)
		total += n
		tail = append(tail, buf[:n]...)
		if i := bytes.Index(tail, marker); i >= 0 {
			return tail[i+len(marker):], nil
		}
		if err != nil {
			return nil, err
		}
		if len(tail) >= markerLen {
			tail = append(tail[:0], tail[len(tail)-markerLen+1:]...)
		}
	}
	return nil, &refusal{text: "it does not answer the reset"}
}

// drop forgets a session that is broken.
func (c *Client) drop(s *hostSession) {
	c.mu.Lock()
	if c.session == s {
		c.session = nil
	}
	c.mu.Unlock()
	s.Close()
}

// do sends one request and gives the answer's body, bounded.
func (c *Client) do(ctx context.Context, method, path string, in any) (body []byte, err error) {
	err = c.ask(ctx, path, in, func(ctx context.Context, in io.Reader) (err error) {
		body, err = c.exchangeHTTP(ctx, method, path, in)
		return err
	})
	return body, err
}

// ask calls f with in as JSON and with a context that carries the connection or session to use, and
// explains its error.
func (c *Client) ask(ctx context.Context, path string, in any, f func(context.Context, io.Reader) error) error {
	return explain(ctx, path, c.try(ctx, in, f))
}

// explain returns the error of a request for path in words of package vmm.
func explain(ctx context.Context, path string, err error) error {
	if err == nil {
		return nil
	}
	var refused *refusal
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case errors.Is(ctx.Err(), context.DeadlineExceeded), isTimeout(err), errors.Is(err, ErrTimeout):
		return fmt.Errorf("cannot ask the agent for %s: %w", path, ErrTimeout)
	case errors.As(err, &refused):
		return fmt.Errorf("cannot ask the agent for %s: %w", path, err)
	}
	return fmt.Errorf("cannot ask the agent for %s: %w: %v", path, ErrNotRunning, err)
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// refusal is an answer that came and is not what was asked for.
type refusal struct {
	text   string
	status int // of HTTP, 0 if it is no such answer
}

func (r *refusal) Error() string { return r.text }

func (c *Client) try(ctx context.Context, in any, f func(context.Context, io.Reader) error) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	if c.vsock != nil {
		if conn := c.vsock.open(ctx, c.handOver); conn != nil {
			proved := &provedConn{Conn: conn}
			defer proved.end()
			return f(context.WithValue(ctx, provedKey{}, proved), body)
		}
	}
	return c.overPort(ctx, func(ctx context.Context) error { return f(ctx, body) })
}

// overPort calls f with a context that carries the port's session.
func (c *Client) overPort(ctx context.Context, f func(context.Context) error) error {
	s, err := c.acquire(ctx)
	if err != nil {
		return err
	}
	began := time.Now().UnixNano()
	err = f(context.WithValue(ctx, sessionKey{}, s))
	var refused *refusal
	switch {
	case err == nil, errors.As(err, &refused):
		s.answered.Store(time.Now().UnixNano())
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		// Others may be served well by a session in which one request hangs.
		if s.answered.Load() < began {
			s.silent.Store(true)
			c.drop(s)
		}
	case ctx.Err() == nil:
		c.drop(s)
		err = s.why(err)
	}
	return err
}

func (c *Client) exchangeHTTP(ctx context.Context, method, path string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxBody {
		return nil, &refusal{text: "the answer is too long"}
	}
	if resp.StatusCode != http.StatusOK {
		return nil, refused(resp.StatusCode, b)
	}
	return b, nil
}

func refused(status int, text []byte) error {
	said := cut(strings.TrimSpace(string(text)), 256)
	return &refusal{fmt.Sprintf("status %d: %s", status, said), status}
}

// Ping implements [Agent]. While the guest boots it waits for the agent's first answer.
func (c *Client) Ping(ctx context.Context) (Info, error) {
	b, err := c.do(ctx, http.MethodGet, "/ping", nil)
	if err != nil {
		return Info{}, err
	}
	return parseInfo(b)
}

// Listeners implements [Agent]; at most 4,096 rows are given.
func (c *Client) Listeners(ctx context.Context) ([]Listener, error) {
	b, err := c.do(ctx, http.MethodGet, "/listeners", nil)
	if err != nil {
		return nil, err
	}
	return parseListeners(b)
}

// Stats implements [Agent].
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	b, err := c.do(ctx, http.MethodGet, "/stats", nil)
	if err != nil {
		return Stats{}, err
	}
	return parseStats(b)
}

// Configure implements [Agent].
func (c *Client) Configure(ctx context.Context, g Config) error {
	_, err := c.do(ctx, http.MethodPost, "/configure", g)
	return err
}

// Freeze implements [Freezer].
func (c *Client) Freeze(ctx context.Context, within time.Duration) (int, error) {
	var got frozen
	b, err := c.do(ctx, http.MethodPost, "/freeze", freeze{within.Milliseconds()})
	if err == nil {
		err = json.Unmarshal(b, &got)
	}
	return got.Count, err
}

// Thaw implements [Freezer].
func (c *Client) Thaw(ctx context.Context) (bool, error) {
	var got frozen
	b, err := c.do(ctx, http.MethodPost, "/thaw", nil)
	if err == nil {
		err = json.Unmarshal(b, &got)
	}
	return got.Held, err
}

// PowerOff implements [Agent].
func (c *Client) PowerOff(ctx context.Context) error {
	_, err := c.do(ctx, http.MethodPost, "/poweroff", nil)
	return err
}
