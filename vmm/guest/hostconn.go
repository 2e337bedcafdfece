package guest

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync/atomic"
)

// Parts of a yamux frame's header (spec.md of github.com/hashicorp/yamux): type at 1, flags at 2,
// length at 8.
const (
	frameHeader = 12
	frameData   = 0
	framePing   = 2
	flagSYN     = 1
)

// errUninvited ends a session in which the agent sends requests. Each ping would cost the host a
// goroutine until its answer is read, and each stream a window of memory.
var errUninvited = errors.New("it begins streams or pings of its own")

// hostConn is the host's end of the port after a reset. It passes only frames that an agent may
// send.
type hostConn struct {
	net.Conn
	gone      atomic.Bool // the machine has ended the connection
	closed    atomic.Bool // by Close
	uninvited atomic.Bool // errUninvited was returned

	frames frames // for the goroutine that writes

	// For the goroutine that reads.
	rest []byte // was read with the marker's echo
	head [frameHeader]byte
	have int    // of head
	body uint32 // bytes of the frame that are not yet read
}

func (c *hostConn) Read(p []byte) (int, error) {
	var n int
	var err error
	if len(c.rest) > 0 {
		n = copy(p, c.rest)
		c.rest = c.rest[n:]
	} else if n, err = c.Conn.Read(p); err != nil {
		c.note()
	}
	if !c.invited(p[:n]) {
		c.uninvited.Store(true)
		return 0, errUninvited
	}
	return n, err
}

func (c *hostConn) Write(p []byte) (int, error) {
	n, err := c.frames.write(c.Conn, p)
	if err != nil {
		c.note()
	}
	return n, err
}

func (c *hostConn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

// note records that the connection broke.
func (c *hostConn) note() {
	if !c.closed.Load() {
		c.gone.Store(true)
	}
}

// frames joins the two writes of a yamux data frame: each write interrupts a virtual machine.
type frames struct {
	head bool   // buf has a header; the next write is its body
	buf  []byte // is reused, and as large as the largest frame
}

func (f *frames) write(w io.Writer, p []byte) (int, error) {
	if !f.head && len(p) == frameHeader && p[1] == frameData && binary.BigEndian.Uint32(p[8:]) > 0 {
		f.head, f.buf = true, append(f.buf[:0], p...)
		return len(p), nil
	}
	had := 0
	whole := p
	if f.head {
		had, f.head = frameHeader, false
		f.buf = append(f.buf, p...)
		whole = f.buf
	}
	n, err := w.Write(whole)
	return max(0, n-had), err
}

// invited parses the next bytes of the frames. It returns false if the agent sends requests of its
// own.
func (c *hostConn) invited(b []byte) bool {
	for len(b) > 0 {
		if c.body > 0 {
			n := min(c.body, uint32(len(b)))
			c.body -= n
			b = b[n:]
			continue
		}
		n := copy(c.head[c.have:], b)
		c.have += n
		b = b[n:]
		if c.have < frameHeader {
			return true
		}
		c.have = 0
		if c.head[1] == framePing || binary.BigEndian.Uint16(c.head[2:])&flagSYN != 0 {
			return false
		}
		if c.head[1] == frameData {
			c.body = binary.BigEndian.Uint32(c.head[8:])
		}
	}
	return true
}
