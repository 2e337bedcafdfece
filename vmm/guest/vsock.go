package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// vsockWait bounds a connection and its handshake: a guest answers within milliseconds.
	vsockWait = time.Second
	// handOverWait bounds the answer to the secret. A restarted agent never answers in a session of
	// its predecessor.
	handOverWait = 2 * time.Second
	// vsockRest is how long the port serves alone after vsock has failed.
	vsockRest = 30 * time.Second
)

// errOldAgent is the error of an agent that knows no secret, of an earlier version.
var errOldAgent = errors.New("the agent is of an earlier version, which obeys any user " +
	"of this host over vsock: restart the VM")

// Vsock is a way to the agent beside its port.
type Vsock struct {
	Dial func(ctx context.Context) (net.Conn, error)

	// Note is called at each change: with nil when requests go over vsock from now on, otherwise
	// with the reason why they go over the port.
	Note func(error)
}

// vsockWay opens a connection for each request, on which both sides have proved that they know the
// secret. It hands the secret over again to an agent that does not know it, as after a restart.
type vsockWay struct {
	Vsock
	secret secret
	turn   chan struct{} // of one, held by the request that hands over the secret

	mu     sync.Mutex
	handed int       // how often the secret was handed over
	rest   time.Time // until then the port serves alone
	noted  vsockState
}

// vsockState is the argument of the last call of Note.
type vsockState int

const (
	notNoted vsockState = iota
	serves
	fails
)

func newVsockWay(v *Vsock) (*vsockWay, error) {
	s, err := newSecret()
	return &vsockWay{Vsock: *v, secret: s, turn: make(chan struct{}, 1)}, err
}

// secretSender sends the secret over the port.
type secretSender func(context.Context, secret) error

// open returns a connection to an agent that has proved itself, nil when the port has to serve.
func (v *vsockWay) open(ctx context.Context, handOver secretSender) net.Conn {
	useless := 0 // the handover after which the handshake failed
	var err error
	for range 2 {
		if useless = v.ready(ctx, useless, handOver); useless == 0 {
			return nil
		}
		var conn net.Conn
		if conn, err = v.connect(ctx); err == nil {
			v.note(nil)
			return conn
		}
		if ctx.Err() != nil {
			return nil
		}
	}
	v.note(err)
	return nil
}

// ready returns the number of handovers, at least one more than useless, for which it hands over
// the secret if it must. It returns 0 when the port has to serve.
func (v *vsockWay) ready(ctx context.Context, useless int, handOver secretSender) int {
	if handed, known := v.known(useless); known {
		return handed
	}
	select {
	case v.turn <- struct{}{}:
		defer func() { <-v.turn }()
	case <-ctx.Done():
		return 0
	}
	if handed, known := v.known(useless); known { // by another request
		return handed
	}
	if err := handOver(ctx, v.secret); err != nil {
		if ctx.Err() == nil && !errors.Is(err, ErrNotRunning) {
			v.note(err)
		}
		return 0
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.handed++
	return v.handed
}

// known returns the result of ready, if that needs no handover.
func (v *vsockWay) known(useless int) (handed int, known bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if time.Now().Before(v.rest) {
		return 0, true
	}
	return v.handed, v.handed > useless
}

// note records how an attempt ended and calls Note at a change.
func (v *vsockWay) note(err error) {
	v.mu.Lock()
	state := serves
	if err != nil {
		state = fails
		v.rest = time.Now().Add(vsockRest)
	}
	changed := v.noted != state
	v.noted = state
	v.mu.Unlock()
	if changed {
		v.Note(err)
	}
}

// connect dials and proves, within vsockWait.
func (v *vsockWay) connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, vsockWait)
	defer cancel()
	conn, err := v.Dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = hostHandshake(conn, v.secret)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// handOver is the secretSender of c. While the guest boots it waits for the agent.
func (c *Client) handOver(ctx context.Context, s secret) error {
	err := c.sendSecret(ctx, s)
	if errors.Is(err, ErrTimeout) && ctx.Err() == nil {
		err = c.sendSecret(ctx, s) // in a new session: a restarted agent has lost the first
	}
	return err
}

func (c *Client) sendSecret(ctx context.Context, s secret) error {
	const path = "/vsock"
	b, err := json.Marshal(handedSecret{s[:]})
	if err != nil {
		return err
	}
	if _, err = c.acquire(ctx); err == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, handOverWait)
		defer cancel()
		err = c.overPort(ctx, func(ctx context.Context) error {
			_, err := c.roundTrip(ctx, http.MethodPost, path, bytes.NewReader(b))
			return err
		})
	}
	var bad *badAnswer
	if errors.As(err, &bad) && bad.status == http.StatusNotFound {
		return errOldAgent
	}
	return explain(ctx, path, err)
}

// provedConn is the connection of one request. The request's end closes it unless it was taken.
type provedConn struct {
	net.Conn
	taken atomic.Bool
}

// take returns the connection the first time, and nil later.
func (p *provedConn) take() (net.Conn, error) {
	if p.taken.Swap(true) {
		return nil, net.ErrClosed
	}
	return p.Conn, nil
}

func (p *provedConn) end() {
	if conn, err := p.take(); err == nil {
		conn.Close()
	}
}
