package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	qmpLineMax    = 1 << 20 // bytes
	qmpPendingMax = 256
	qmpDeadline   = 2 * time.Second // of a call whose context has none
)

// qmpMessage is one line from QEMU: a greeting, an answer or an event (QMP
// specification, docs/interop/qmp-spec.txt of QEMU).
type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *qmpError       `json:"error"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
}

// qmpError is QEMU's refusal of a command.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return fmt.Sprintf("QEMU says %q (%s)", e.Desc, e.Class) }

// decodeQMP parses one line, which must be exactly one kind of message.
func decodeQMP(line []byte) (qmpMessage, error) {
	var m qmpMessage
	if err := json.Unmarshal(line, &m); err != nil {
		return qmpMessage{}, fmt.Errorf("not a QMP message: %w", err)
	}
	kinds := 0
	for _, is := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return qmpMessage{}, fmt.Errorf("not a QMP message: %d kinds in one line", kinds)
	}
	return m, nil
}

// qmpEvent is a message of QEMU's own accord.
type qmpEvent struct {
	Name string
	Data json.RawMessage
}

// qmpClient speaks QMP over one connection. Calls may be made from many goroutines. One goroutine
// reads, and ends with the connection.
type qmpClient struct {
	conn    net.Conn
	onEvent func(qmpEvent) // called from the reader, must not block
	writing chan struct{}  // holds a token while no write is under way
	greeted chan struct{}
	done    chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan qmpMessage
	err     error // why the reader has ended
}

// newQMP negotiates with QEMU on conn. It owns conn, also after an error.
func newQMP(ctx context.Context, conn net.Conn, onEvent func(qmpEvent)) (*qmpClient, error) {
	c := &qmpClient{
		conn: conn, onEvent: onEvent,
		writing: make(chan struct{}, 1),
		greeted: make(chan struct{}),
		done:    make(chan struct{}),
		pending: map[uint64]chan qmpMessage{},
	}
	c.writing <- struct{}{}
	go c.read()
	err := c.greet(ctx)
	if err == nil {
		err = c.call(ctx, "qmp_capabilities", nil, nil)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *qmpClient) greet(ctx context.Context) error {
	select {
	case <-c.greeted:
		return nil
	case <-c.done:
		return c.reason()
	case <-ctx.Done():
		return fmt.Errorf("QEMU does not greet: %w", ctx.Err())
	}
}

// Close ends the connection and returns when the reader has ended.
func (c *qmpClient) Close() {
	c.conn.Close()
	<-c.done
}

func (c *qmpClient) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Errorf("QMP connection lost: %w", c.err)
}

func (c *qmpClient) read() {
	defer close(c.done)
	defer c.conn.Close()
	lines := bufio.NewScanner(c.conn)
	lines.Buffer(make([]byte, 0, 4096), qmpLineMax)
	greeted := false
	var err error
	for err == nil && lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		var m qmpMessage
		m, err = decodeQMP(lines.Bytes())
		switch {
		case err != nil:
		case m.Greeting != nil:
			if greeted {
				err = errors.New("a second greeting")
				break
			}
			greeted = true
			close(c.greeted)
		case m.Event != "":
			c.onEvent(qmpEvent{m.Event, m.Data})
		case m.ID == nil:
			if m.Error != nil {
				err = m.Error
			}
		default:
			c.answer(m)
		}
	}
	if err == nil {
		err = lines.Err()
	}
	if err == nil {
		err = errors.New("closed by QEMU")
	}
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
}

// answer delivers m to its call, unless that has ended.
func (c *qmpClient) answer(m qmpMessage) {
	c.mu.Lock()
	ch := c.pending[*m.ID]
	delete(c.pending, *m.ID)
	c.mu.Unlock()
	if ch != nil {
		ch <- m
	}
}

// call executes a command, and decodes its answer into result unless that is nil. It blocks until
// the deadline of ctx, or for 2 s if ctx has none.
func (c *qmpClient) call(ctx context.Context, command string, args, result any) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, qmpDeadline)
		defer cancel()
	}
	if err := c.exchange(ctx, command, args, result); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

func (c *qmpClient) exchange(ctx context.Context, command string, args, result any) error {
	ch := make(chan qmpMessage, 1)
	c.mu.Lock()
	// The bound keeps a QEMU that is stopped from filling the socket.
	if len(c.pending) >= qmpPendingMax {
		c.mu.Unlock()
		return fmt.Errorf("QEMU has not answered %d commands", qmpPendingMax)
	}
	c.next++
	id := c.next
	c.pending[id] = ch
	c.mu.Unlock()
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err == nil {
		err = c.write(ctx, append(line, '\n'))
	}
	if err != nil {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
		return err
	}
	// An id stays pending until QEMU answers or the connection ends. So the map counts the commands
	// that a stopped QEMU has yet to read.
	var m qmpMessage
	select {
	case m = <-ch:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
		select {
		case m = <-ch: // QEMU's last message
		default:
			return c.reason()
		}
	}
	if m.Error != nil {
		return m.Error
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(m.Return, result)
}

func (c *qmpClient) write(ctx context.Context, line []byte) error {
	select {
	case <-c.writing:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
		return c.reason()
	}
	defer func() { c.writing <- struct{}{} }()
	deadline, _ := ctx.Deadline()
	if err := c.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	n, err := c.conn.Write(line)
	if err != nil && n > 0 {
		c.conn.Close() // half a command would spoil the next
	}
	return err
}
