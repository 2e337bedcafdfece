package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"banger/vmm"
)

const (
	maxClients  = 512              // connections or UDP clients of one published port at once
	dialGuest   = 5 * time.Second  // for a guest to take a connection
	udpIdle     = 60 * time.Second // until a UDP client is forgotten
	udpDatagram = 64 << 10
	errorPause  = 10 * time.Millisecond // after an error of a socket, which may stay
)

// forward holds a published port of the host, so that it stays the VM's, and serves clients on the host
// itself. The table leads those of other hosts to the guest.
type forward struct {
	vmm.Publication
	to      netip.AddrPort
	refused func(netip.Addr) bool // clients that may not
	socket  io.Closer
	cancel  context.CancelFunc // ends the attempts to reach the guest
	work    sync.WaitGroup

	mu     sync.Mutex
	closed bool
	flows  map[net.Conn]net.Conn // each client's connection, and that to the guest; guarded by mu
}

// openForward binds p. The caller closes what it gives.
func openForward(
	p vmm.Publication, guest netip.Addr, refused func(netip.Addr) bool,
) (*forward, error) {
	f := &forward{Publication: p, to: netip.AddrPortFrom(guest, p.Guest), refused: refused,
		flows: make(map[net.Conn]net.Conn)}
	family := "6"
	if p.Host.Addr().Is4() {
		family = "4"
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	var serve func()
	if p.Protocol == "udp" {
		c, err := net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(p.Host))
		if err != nil {
			cancel()
			return nil, vmm.SocketError(p, err)
		}
		f.socket, serve = c, func() { f.serveUDP(c) }
	} else {
		l, err := net.ListenTCP("tcp"+family, net.TCPAddrFromAddrPort(p.Host))
		if err != nil {
			cancel()
			return nil, vmm.SocketError(p, err)
		}
		f.socket, serve = l, func() { f.serveTCP(ctx, l) }
	}
	f.spawn(serve)
	return f, nil
}

// Close frees the port, cuts what goes through it and returns when its goroutines have ended.
func (f *forward) Close() {
	f.cancel()
	f.mu.Lock()
	f.closed = true
	for c, guest := range f.flows {
		closeBoth(c, guest)
	}
	f.mu.Unlock()
	_ = f.socket.Close()
	f.work.Wait()
}

func (f *forward) isClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

func (f *forward) spawn(run func()) {
	f.work.Add(1)
	go func() {
		defer f.work.Done()
		run()
	}()
}

// enter admits a client by its connection. It returns false if the port has too many clients, or is closed.
func (f *forward) enter(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || len(f.flows) >= maxClients {
		return false
	}
	f.flows[c] = nil
	return true
}

// join notes the connection to the guest of a client that has entered; false if the port is closed.
func (f *forward) join(c, guest net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.flows[c] = guest
	return true
}

func (f *forward) leave(c net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	closeBoth(c, f.flows[c])
	delete(f.flows, c)
}

func closeBoth(c, guest net.Conn) {
	_ = c.Close()
	if guest != nil {
		_ = guest.Close()
	}
}

func (f *forward) serveTCP(ctx context.Context, l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(errorPause) // no descriptor is free: that passes, or the next attempt says so again
			continue
		}
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
		if f.refused(from.Unmap()) || !f.enter(c) {
			_ = c.Close()
			continue
		}
		f.spawn(func() { f.pass(ctx, c) })
	}
}

// pass carries one connection, each direction until its end.
func (f *forward) pass(ctx context.Context, client *net.TCPConn) {
	defer f.leave(client)
	ctx, cancel := context.WithTimeout(ctx, dialGuest)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", f.to.String())
	if err != nil {
		return
	}
	if !f.join(client, conn) {
		_ = conn.Close()
		return
	}
	guest := conn.(*net.TCPConn)
	back := make(chan struct{})
	go func() { // ends with the connection: pass waits for it
		defer close(back)
		carry(client, guest)
	}()
	carry(guest, client)
	<-back
}

func carry(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		_ = from.Close() // the other direction has no use any more
		_ = to.Close()
		return
	}
	_ = to.CloseWrite()
}

func (f *forward) serveUDP(c *net.UDPConn) {
	clients := make(map[netip.AddrPort]*net.UDPConn) // guarded by mu
	var mu sync.Mutex
	b := make([]byte, udpDatagram)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(errorPause)
			continue
		}
		if f.refused(from.Addr().Unmap()) {
			continue
		}
		mu.Lock()
		guest := clients[from]
		mu.Unlock()
		if guest == nil {
			if guest, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(f.to)); err != nil {
				continue
			}
			if !f.enter(guest) {
				_ = guest.Close()
				continue
			}
			mu.Lock()
			clients[from] = guest
			mu.Unlock()
			f.spawn(func() {
				defer f.leave(guest)
				answers(c, guest, from)
				mu.Lock()
				delete(clients, from)
				mu.Unlock()
			})
		}
		_ = guest.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = guest.Write(b[:n]) // may be lost, as any datagram
	}
}

// answers carries what the guest sends to one client until neither has sent anything for udpIdle.
func answers(c, guest *net.UDPConn, to netip.AddrPort) {
	b := make([]byte, udpDatagram)
	for {
		n, err := guest.Read(b)
		var timeout net.Error
		switch {
		case err == nil:
			_ = guest.SetReadDeadline(time.Now().Add(udpIdle))
			_, _ = c.WriteToUDPAddrPort(b[:n], to)
		case errors.Is(err, net.ErrClosed), errors.As(err, &timeout) && timeout.Timeout():
			return
		default: // no service listens in the guest, or the guest is not reached
			time.Sleep(errorPause)
		}
	}
}
