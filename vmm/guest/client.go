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
	"time"
)

const (
	maxListeners = 4096
	maxString    = 4 << 10
)

// Client asks the agent of one guest. It implements [Agent], [Streamer], [Freezer] and
// [Clock]. Many goroutines may use it.
type Client struct {
	dial  func(ctx context.Context) (net.Conn, error) // the port
	vsock *vsockWay                                   // nil where there is none
	http  *http.Transport
	ctx   context.Context // ends with Close
	stop  context.CancelFunc
	wg    sync.WaitGroup

	// Guarded by mu.
	mu      sync.Mutex
	closed  bool
	session *hostSession
	opening *opening
}

// NewClient returns a client of the agent whose virtio-serial port dial reaches. Requests share one
// connection there, which the first one opens, or have one each over vsock, unless that is nil.
func NewClient(dial func(ctx context.Context) (net.Conn, error), vsock *Vsock) *Client {
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

// Close ends the session and all requests. It returns when the client's goroutines have ended.
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

// sessionKey and provedKey are the keys of a context's session and connection, which connect uses.
type (
	sessionKey struct{}
	provedKey  struct{}
)

// do sends one request and returns the answer's body, bounded.
func (c *Client) do(
	ctx context.Context, method, path string, request any,
) (answer []byte, err error) {
	err = c.ask(ctx, path, request, func(ctx context.Context, body io.Reader) (err error) {
		answer, err = c.roundTrip(ctx, method, path, body)
		return err
	})
	return answer, err
}

// sender sends a request, whose body it gets, on the connection or session in its context.
type sender func(ctx context.Context, body io.Reader) error

// ask calls send with a request as JSON, and explains its error.
func (c *Client) ask(ctx context.Context, path string, request any, send sender) error {
	return explain(ctx, path, c.route(ctx, request, send))
}

// explain turns the error of a request into one of errors.go.
func explain(ctx context.Context, path string, err error) error {
	if err == nil {
		return nil
	}
	var bad *badAnswer
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case errors.Is(ctx.Err(), context.DeadlineExceeded), isTimeout(err), errors.Is(err, ErrTimeout):
		return fmt.Errorf("cannot ask the agent for %s: %w", path, ErrTimeout)
	case errors.As(err, &bad):
		return fmt.Errorf("cannot ask the agent for %s: %w", path, err)
	}
	return fmt.Errorf("cannot ask the agent for %s: %w: %v", path, ErrNotRunning, err)
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// badAnswer is an answer that refuses the request or breaks the protocol.
type badAnswer struct {
	text   string
	status int // of HTTP, or 0
}

func (r *badAnswer) Error() string { return r.text }

// route calls send with a connection over vsock, or without one with the port's session.
func (c *Client) route(ctx context.Context, request any, send sender) error {
	var body io.Reader
	if request != nil {
		b, err := json.Marshal(request)
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
			return send(context.WithValue(ctx, provedKey{}, proved), body)
		}
	}
	return c.overPort(ctx, func(ctx context.Context) error { return send(ctx, body) })
}

func (c *Client) roundTrip(
	ctx context.Context, method, path string, body io.Reader,
) ([]byte, error) {
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
		return nil, &badAnswer{text: "the answer is too long"}
	}
	if resp.StatusCode != http.StatusOK {
		return nil, httpFailure(resp.StatusCode, b)
	}
	return b, nil
}

func httpFailure(status int, text []byte) error {
	said := cut(strings.TrimSpace(string(text)), 256)
	return &badAnswer{fmt.Sprintf("status %d: %s", status, said), status}
}

// Ping implements [Agent]. While the guest boots it waits for the agent's first answer.
func (c *Client) Ping(ctx context.Context) (Info, error) {
	b, err := c.do(ctx, http.MethodGet, "/ping", nil)
	if err != nil {
		return Info{}, err
	}
	return parseInfo(b)
}

// Listeners implements [Agent]. It returns at most 4,096 rows.
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
	var got freezeAnswer
	b, err := c.do(ctx, http.MethodPost, "/freeze", freezeRequest{within.Milliseconds()})
	if err == nil {
		err = json.Unmarshal(b, &got)
	}
	return got.Count, err
}

// Thaw implements [Freezer].
func (c *Client) Thaw(ctx context.Context) (bool, error) {
	var got freezeAnswer
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
