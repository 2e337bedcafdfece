package guest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	maxDiscard = 16 << 20 // bytes of an earlier session, before the marker's echo
	// echoWait is how long to wait for the echo of a marker before a new dial of the port: a
	// restarted agent has lost the marker.
	echoWait = 15 * time.Second
)

// hostSession is a session after its reset.
type hostSession struct {
	*yamux.Session
	conn     *hostConn
	answered atomic.Int64 // when the last answer arrived, UnixNano
	silent   atomic.Bool  // dropped for want of an answer
}

// why explains err, with which a request failed before its deadline: the machine is gone, another
// request dropped the silent session, or the agent broke the protocol.
func (s *hostSession) why(err error) error {
	switch {
	case s.conn.gone.Load():
		return err
	case s.silent.Load():
		return ErrTimeout
	case s.conn.uninvited.Load():
		err = errUninvited
	}
	return &badAnswer{text: "it does not keep to the protocol: " + err.Error()}
}

// opening is one attempt at a session. All requests that need one share it.
type opening struct {
	done    chan struct{}
	session *hostSession
	err     error
}

// hostStream is a stream whose Close ends its reads. Those of yamux go on until StreamCloseTimeout:
// with an agent that sends a byte now and then, no request would end in time.
type hostStream struct{ *yamux.Stream }

func (s hostStream) Close() error {
	return errors.Join(s.SetReadDeadline(time.Now()), s.Stream.Close())
}

// acquire returns the session, and opens one if there is none. ctx bounds only the waiting.
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

// reset dials, and begins a session once the agent has echoed the marker. It returns
// context.DeadlineExceeded after echoWait.
func (c *Client) reset() (*hostSession, error) {
	ctx, cancel := context.WithTimeout(c.ctx, echoWait)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	rest, err := awaitEcho(conn)
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

// awaitEcho sends a marker and discards everything before its echo. It returns what was read after
// it.
func awaitEcho(conn net.Conn) ([]byte, error) {
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
	return nil, &badAnswer{text: "it does not answer the reset"}
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

// overPort calls f with a context that carries the port's session.
func (c *Client) overPort(ctx context.Context, f func(context.Context) error) error {
	s, err := c.acquire(ctx)
	if err != nil {
		return err
	}
	began := time.Now().UnixNano()
	err = f(context.WithValue(ctx, sessionKey{}, s))
	var bad *badAnswer
	switch {
	case err == nil, errors.As(err, &bad):
		s.answered.Store(time.Now().UnixNano())
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		// One request may hang in a session that serves others well.
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
