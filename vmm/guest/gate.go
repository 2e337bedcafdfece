package guest

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// MaxUnproved bounds the connections in their handshake. One more closes the oldest, so that
	// silent connections, however many, do not keep the host out.
	MaxUnproved = 64
	// proofWait bounds a handshake.
	proofWait = 5 * time.Second
	// acceptPause is the pause in accepting while the guest is short of descriptors or memory.
	acceptPause = 100 * time.Millisecond
)

// handedSecret is the request that carries the secret, over virtio-serial only.
type handedSecret struct {
	Secret []byte `json:"secret"`
}

// Gate stands between vsock and the agent. It admits peers that prove to know the secret, which
// the host hands over on the port. Until then it admits none.
type Gate struct {
	// Proved, if set, is called with each admitted connection before it is served.
	Proved func(net.Conn)

	mu       sync.Mutex
	secret   *secret    // nil until the host has handed one over
	unproved []net.Conn // oldest first
}

// PortHandler serves h on the port, and receives the secret there.
func (g *Gate) PortHandler(h http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", h)
	mux.HandleFunc("POST /vsock", func(w http.ResponseWriter, r *http.Request) {
		var handed handedSecret
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&handed)
		var s secret
		if err != nil || copy(s[:], handed.Secret) != len(s) || len(handed.Secret) != len(s) {
			http.Error(w, "that is no secret of 32 bytes", http.StatusBadRequest)
			return
		}
		g.mu.Lock()
		g.secret = &s
		g.mu.Unlock()
		answer(w, struct{}{}, nil)
	})
	return mux
}

// Serve answers requests on l, a connection each, of peers that have proved themselves. It returns
// the first lasting error of Accept, after its goroutines have ended.
func (g *Gate) Serve(l net.Listener, h http.Handler) error {
	admitted := &provedListener{
		conns: make(chan net.Conn), addr: l.Addr(), done: make(chan struct{}),
	}
	server := newServer(h)
	var wg sync.WaitGroup
	wg.Go(func() {
		server.Serve(admitted)
	})
	defer wg.Wait()
	defer server.Close() // which closes admitted
	defer g.closeUnproved()
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
		case passes(err):
			time.Sleep(acceptPause)
			continue
		default:
			return err
		}
		s, ok := g.enter(conn)
		if !ok {
			conn.Close()
			continue
		}
		wg.Go(func() {
			if !g.prove(conn, s) || !admitted.pass(conn) {
				conn.Close()
			}
		})
	}
}

// passes reports whether an error of Accept is temporary (accept(2)).
func passes(err error) bool {
	return slices.ContainsFunc([]error{
		syscall.ECONNABORTED, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
	}, func(e error) bool { return errors.Is(err, e) })
}

// enter counts conn as unproved and returns the secret that its peer must know, if there is one.
func (g *Gate) enter(conn net.Conn) (secret, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.secret == nil {
		return secret{}, false
	}
	if len(g.unproved) == MaxUnproved {
		g.unproved[0].Close() // which ends its handshake
		g.unproved = slices.Delete(g.unproved, 0, 1)
	}
	g.unproved = append(g.unproved, conn)
	return *g.secret, true
}

// prove reports whether conn's peer knows the secret. It no longer counts conn as unproved.
func (g *Gate) prove(conn net.Conn, s secret) bool {
	err := conn.SetDeadline(time.Now().Add(proofWait))
	if err == nil {
		err = agentHandshake(conn, s)
	}
	g.mu.Lock()
	g.unproved = slices.DeleteFunc(g.unproved, func(c net.Conn) bool { return c == conn })
	g.mu.Unlock()
	if err != nil || conn.SetDeadline(time.Time{}) != nil {
		return false
	}
	if g.Proved != nil {
		g.Proved(conn)
	}
	return true
}

func (g *Gate) closeUnproved() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, conn := range g.unproved {
		conn.Close()
	}
}

// provedListener passes the admitted connections to the HTTP server.
type provedListener struct {
	conns chan net.Conn
	addr  net.Addr
	once  sync.Once
	done  chan struct{}
}

// pass hands conn to the server. It returns false when the server has ended.
func (l *provedListener) pass(conn net.Conn) bool {
	select {
	case l.conns <- conn:
		return true
	case <-l.done:
		return false
	}
}

func (l *provedListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *provedListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *provedListener) Addr() net.Addr { return l.addr }
