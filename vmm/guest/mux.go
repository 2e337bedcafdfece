package guest

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// PortName is the virtio-serial port that the agent serves, VsockPort the AF_VSOCK port. Ports
// below 1024 are root's to listen on.
const (
	PortName  = "banger.agent"
	VsockPort = 1023
)

// magic begins a marker. It occurs in no JSON, HTTP or header of a yamux frame.
const magic = "\xff\xfebanger-reset "

const markerLen = len(magic) + 32 + 1

// newMarker returns a marker with a fresh nonce.
func newMarker() ([]byte, error) {
	var nonce [16]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, err
	}
	return append(hex.AppendEncode([]byte(magic), nonce[:]), '\n'), nil
}

// findMarker returns the last whole marker in b and the offset after it, or nil. It searches
// forwards, because bytes.Index is fast and bytes.LastIndex is not.
func findMarker(b []byte) (marker []byte, after int) {
	for from := 0; ; {
		i := bytes.Index(b[from:], []byte(magic))
		if i < 0 || from+i+markerLen > len(b) {
			return marker, after
		}
		begin := from + i
		from = begin + len(magic)
		if end := begin + markerLen; b[end-1] == '\n' {
			marker, after = b[begin:end], end
		}
	}
}

func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.AcceptBacklog = 64
	c.ConnectionWriteTimeout = 10 * time.Second
	c.StreamOpenTimeout = 10 * time.Second
	c.StreamCloseTimeout = 10 * time.Second
	c.LogOutput = io.Discard
	return c
}

// ServePort serves h on port, a byte stream that outlives the host's connections. Its Read may
// return io.EOF when the host has certainly gone; the next call then blocks until the host is back.
// ServePort returns the first other error of Read, after its goroutines have ended. It does not
// close port.
func ServePort(port io.ReadWriter, h http.Handler) error {
	var (
		writing sync.Mutex // held for each write to port, so that no echo is written inside a frame
		current *portSession
	)
	end := func() {
		if current != nil {
			current.end()
			current = nil
		}
	}
	defer end()
	buf := make([]byte, markerLen-1+32<<10)
	kept := 0 // bytes at the start of buf that may begin a marker
	for {
		n, err := port.Read(buf[kept:])
		if err == io.EOF {
			end()
			kept = 0
			continue
		}
		if err != nil {
			return err
		}
		window := buf[:kept+n]
		marker, after := findMarker(window)
		fresh := window[kept:]
		if marker != nil {
			end()
			writing.Lock()
			_, err := port.Write(marker)
			writing.Unlock()
			if err != nil {
				return err
			}
			current = newPortSession(port, &writing, h)
			fresh = window[after:]
		}
		if current != nil && len(fresh) > 0 {
			if _, err := current.feed.Write(fresh); err != nil {
				end()
			}
		}
		kept = copy(buf, window[max(after, len(window)-markerLen+1):])
	}
}

// portSession is one yamux session on a port, between two markers.
type portSession struct {
	feed    *io.PipeWriter // carries the bytes from the host
	conn    *portConn
	session *yamux.Session
	server  *http.Server
	done    chan struct{}
}

func newPortSession(port io.Writer, writing *sync.Mutex, h http.Handler) *portSession {
	r, w := io.Pipe()
	conn := &portConn{PipeReader: r, port: port, writing: writing}
	s := &portSession{feed: w, conn: conn, done: make(chan struct{})}
	session, err := yamux.Server(s.conn, muxConfig())
	if err != nil {
		panic(err) // muxConfig is wrong
	}
	s.session = session
	s.server = newServer(h)
	go func() {
		defer close(s.done)
		s.server.Serve(session)
		session.Close()
		r.Close()
	}()
	return s
}

// end ends the session. It does not wait for a write to the port that blocks.
func (s *portSession) end() {
	s.conn.Close()
	s.server.Close()
	go s.session.Close()
	<-s.done
}

// portConn is a session's view of the port: closing it leaves the port open.
type portConn struct {
	*io.PipeReader
	port    io.Writer
	writing *sync.Mutex
	frames  frames // guarded by writing
	mu      sync.Mutex
	closed  bool
}

func (c *portConn) gone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func (c *portConn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.gone() {
		return 0, net.ErrClosed
	}
	return c.frames.write(c.port, p)
}

func (c *portConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	return c.PipeReader.Close()
}
