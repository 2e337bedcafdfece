package guest

import (
	"net"
	"sync"
)

// QuietConn is a connection to a guest for net/http's client: it gives nothing to read before something was written. A guest that speaks first
// would else make net/http write the guest's text to the daemon's standard log, and fail the request before its time.
type QuietConn struct {
	net.Conn
	once    sync.Once
	written chan struct{} // closed by the first Write, or by Close
}

// NewQuietConn wraps conn, which is the caller's to close through it.
func NewQuietConn(conn net.Conn) *QuietConn {
	return &QuietConn{Conn: conn, written: make(chan struct{})}
}

func (q *QuietConn) open() { q.once.Do(func() { close(q.written) }) }

// Read implements net.Conn; it blocks until something was written.
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
