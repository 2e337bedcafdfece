package guest

import (
	"net"
	"sync"
)

// QuietConn is a connection to a guest for net/http's client. Its reads wait for the first write:
// if a guest speaks first, net/http writes the guest's text to the standard log and fails the
// request.
type QuietConn struct {
	net.Conn
	once    sync.Once
	written chan struct{} // closed by the first Write or by Close
}

// NewQuietConn wraps conn. The caller closes the result in place of conn.
func NewQuietConn(conn net.Conn) *QuietConn {
	return &QuietConn{Conn: conn, written: make(chan struct{})}
}

func (q *QuietConn) open() { q.once.Do(func() { close(q.written) }) }

// Read implements net.Conn. It blocks until the first Write.
func (q *QuietConn) Read(p []byte) (int, error) {
	<-q.written
	return q.Conn.Read(p)
}

// Write implements net.Conn.
func (q *QuietConn) Write(p []byte) (int, error) {
	n, err := q.Conn.Write(p)
	q.open()
	return n, err
}

// Close implements net.Conn.
func (q *QuietConn) Close() error {
	err := q.Conn.Close()
	q.open()
	return err
}
