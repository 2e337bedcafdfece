package main

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"banger/vmm/guest"
)

const dialWait = 5 * time.Second

// dialLoopback connects to a port of the guest itself, by IPv4 or else IPv6.
func dialLoopback(port int) (guest.Command, error) {
	d := net.Dialer{Timeout: dialWait}
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := d.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err == nil {
			return &connection{conn: conn.(*net.TCPConn), ended: make(chan struct{})}, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("nothing in the guest can be reached on port %d: %v: %w", port, errs[0],
		guest.ErrNotFound)
}

// connection implements guest.Command for a connection to the guest's loopback. It ends with the
// output of the far end.
type connection struct {
	conn  *net.TCPConn
	ended chan struct{}
	once  sync.Once
}

func (c *connection) PID() int               { return 0 }
func (c *connection) Input() io.WriteCloser  { return halfInput{c.conn} }
func (c *connection) Output() guest.ExecPipe { return c }
func (c *connection) Errors() guest.ExecPipe { return nil }
func (c *connection) Signal(int)             {}
func (c *connection) Resize(int, int)        {}
func (c *connection) HangUp()                { c.Kill() }
func (c *connection) Left() bool             { return false }

func (c *connection) Kill() { c.conn.Close() }

func (c *connection) Wait() guest.ExecStatus {
	<-c.ended
	return guest.ExecStatus{}
}

func (c *connection) Read(p []byte) (int, error) { return c.conn.Read(p) }

func (c *connection) SetReadDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

// Close ends the output and with it the connection, whose input nobody would answer any more.
func (c *connection) Close() error {
	c.once.Do(func() { close(c.ended) })
	return c.conn.Close()
}

// halfInput is the connection's input. Its end leaves the output open.
type halfInput struct{ *net.TCPConn }

func (h halfInput) Close() error { return h.CloseWrite() }
