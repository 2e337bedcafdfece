package sftp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	sentAtOnce   = 64 << 10 // bytes of requests, the last one aside
	handleMost   = 256      // bytes
	nameMost     = 255
	targetMost   = 4095
	pendingCalls = 256 // without an answer, abandoned ones among them
)

// ErrProtocol ends a session whose server does not keep to the protocol.
var ErrProtocol = errors.New("the guest's agent does not keep to the file transfer protocol")

// Client is one session. Its calls return the server's errors as a syscall.Errno, those of their
// context, and the error with which the session has ended.
type Client struct {
	conn     net.Conn
	requests chan []byte
	slots    chan struct{} // each call holds one until its answer arrives
	done     chan struct{} // closed when the session has ended
	work     sync.WaitGroup
	heard    atomic.Int64 // when the last packet arrived, UnixNano

	// Guarded by mu.
	mu    sync.Mutex
	calls map[uint32]*call // without an answer, by ID
	last  uint32           // ID
	err   error            // with which the session has ended
}

// call is a request and its answer.
type call struct {
	id    uint32
	reply chan reply  // has room for one
	late  func(reply) // if set, receives an answer after the caller left; must not block
	left  bool        // by the caller; guarded by Client.mu
}

type reply struct {
	kind byte
	d    decoder
	err  error // the session has ended
}

// NewClient begins a session on conn, and closes conn with it or when it fails. ctx bounds only
// this call.
func NewClient(ctx context.Context, conn net.Conn) (*Client, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err := greet(conn)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	c := &Client{
		conn:     conn,
		requests: make(chan []byte),
		slots:    make(chan struct{}, pendingCalls),
		done:     make(chan struct{}),
		calls:    make(map[uint32]*call),
	}
	c.work.Go(c.send)
	c.work.Go(c.receive)
	return c, nil
}

func greet(conn net.Conn) error {
	if _, err := conn.Write(greeting(kindInit)); err != nil {
		return err
	}
	kind, d, err := readPacket(conn)
	if err != nil {
		return err
	}
	if version := d.u32(); kind != kindVersion || d.bad || version != protocolVersion {
		return ErrProtocol
	}
	return nil
}

func readPacket(r io.Reader) (kind byte, d decoder, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, d, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 1 || n > maxAnswer {
		return 0, d, ErrProtocol
	}
	d.b = make([]byte, n-1)
	_, err = io.ReadFull(r, d.b)
	return head[4], d, err
}

// Close ends the session, with that error for every call. It returns when its goroutines have
// ended.
func (c *Client) Close(why error) {
	c.end(why)
	c.work.Wait()
}

// Done is closed when the session has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Heard returns when the last packet arrived.
func (c *Client) Heard() time.Time { return time.Unix(0, c.heard.Load()) }

func (c *Client) end(why error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = why
	calls := c.calls
	c.calls = nil
	close(c.done)
	c.mu.Unlock()
	c.conn.Close()
	for _, k := range calls {
		k.reply <- reply{err: why}
	}
}

func (c *Client) send() {
	for {
		select {
		case p := <-c.requests:
			// Together, because each write interrupts a virtual machine.
			for more := true; more && len(p) < sentAtOnce; {
				select {
				case q := <-c.requests:
					p = append(p, q...)
				default:
					more = false
				}
			}
			if _, err := c.conn.Write(p); err != nil {
				c.end(ended(err))
				return
			}
		case <-c.done:
			return
		}
	}
}

func (c *Client) receive() {
	for {
		kind, d, err := readPacket(c.conn)
		if err != nil && err != ErrProtocol {
			err = ended(err)
		}
		if err == nil {
			c.heard.Store(time.Now().UnixNano())
			err = c.deliver(kind, d)
		}
		if err != nil {
			c.end(err)
			return
		}
	}
}

// ended hides the errno of a broken connection, since an errno means the server's answer.
func ended(err error) error {
	return fmt.Errorf("the connection to the guest's agent ended: %v", err)
}

// deliver hands an answer to its call.
func (c *Client) deliver(kind byte, d decoder) error {
	id := d.u32()
	r := reply{kind: kind, d: d}
	c.mu.Lock()
	k := c.calls[id]
	delete(c.calls, id)
	left := k != nil && k.left
	if k != nil && !left {
		k.reply <- r // has room; under mu, so that leave finds it
	}
	c.mu.Unlock()
	if k == nil || d.bad {
		return ErrProtocol
	}
	<-c.slots
	if left && k.late != nil {
		k.late(r)
	}
	return nil
}

// begin sends a request. answer or wait returns the answer.
func (c *Client) begin(
	ctx context.Context, kind byte, late func(reply), body []byte,
) (*call, error) {
	select {
	case c.slots <- struct{}{}:
	case <-c.done:
		return nil, c.why()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	k := &call{reply: make(chan reply, 1), late: late}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, c.why()
	}
	c.last++
	k.id = c.last
	c.calls[k.id] = k
	c.mu.Unlock()
	const headLen = 9
	p := append(beginPacket(make([]byte, 0, headLen+len(body)), k.id), body...)
	endPacket(p, 0, kind)
	select {
	case c.requests <- p:
		return k, nil
	case <-c.done:
		return nil, c.why()
	case <-ctx.Done(): // the request was not sent
		c.mu.Lock()
		_, unanswered := c.calls[k.id]
		delete(c.calls, k.id)
		c.mu.Unlock()
		if unanswered { // otherwise a server that guesses IDs has answered
			<-c.slots
		}
		return nil, ctx.Err()
	}
}

func (c *Client) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// answer waits for an answer of any kind.
func (c *Client) answer(ctx context.Context, k *call) (reply, error) {
	var r reply
	select {
	case r = <-k.reply:
	default:
		select {
		case r = <-k.reply:
		case <-ctx.Done():
			c.leave(k)
			return r, ctx.Err()
		}
	}
	return r, r.err
}

// wait waits for an answer of the kind wanted, or the error of a status. Another kind ends the
// session.
func (c *Client) wait(ctx context.Context, k *call, want byte) (decoder, error) {
	r, err := c.answer(ctx, k)
	switch {
	case err != nil:
		return decoder{}, err
	case r.kind == want:
		return r.d, nil
	case r.kind == kindStatus:
		if err := statusError(&r.d); err != nil {
			return decoder{}, err
		}
	}
	return decoder{}, c.broken()
}

func (c *Client) broken() error {
	c.end(ErrProtocol)
	return ErrProtocol
}

// leave records that the caller no longer waits. An answer that has arrived already is given to
// late.
func (c *Client) leave(k *call) {
	c.mu.Lock()
	k.left = true
	c.mu.Unlock()
	select {
	case r := <-k.reply:
		if k.late != nil && r.err == nil {
			k.late(r)
		}
	default:
	}
}
