package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Bounds of what is asked.
const (
	maxQuery  = 4096 // bytes
	maxAsking = 256  // queries that wait for a resolver
	maxConns  = 256
	tcpIdle   = 10 * time.Second // for a whole query to come
	tcpLife   = 30 * time.Second // of a connection, as others wait for its slot
	tcpWrite  = 5 * time.Second
	// sockBuffer is the size of a socket's buffers, in bytes. It has room for the queries of others
	// during one guest's flood. The kernel also keeps there, for 3 s, what it sends to a guest that
	// does not answer its ARP, up to 200 KiB for each such guest.
	sockBuffer = 4 << 20
	sendRetry  = 100 * time.Millisecond
)

// Options of a Server.
type Options struct {
	Gateways []netip.Prefix // the host's addresses on the bridge, each with the length of its subnet
	Port     uint16         // 53 if 0
	// ResolvConf names the host's resolvers; /etc/resolv.conf if empty.
	ResolvConf string
	Log        *slog.Logger
}

// Server answers on the bridge. Its methods may be called from many goroutines.
type Server struct {
	o       Options // immutable, as are the next five
	zone    zone
	forward forwarder
	own     []netip.AddrPort // where it listens
	udp     []*net.UDPConn
	tcp     []net.Listener

	sources sources
	host    hostAddrs
	canary  atomic.Pointer[string] // the label that Host looks for now
	asking  chan struct{}          // slots
	conns   chan struct{}          // slots
	ctx     context.Context        // ends with Close
	cancel  context.CancelFunc
	work    sync.WaitGroup
}

// Listen binds the port on every gateway, UDP and TCP. Nothing is answered before Serve. The caller
// closes the Server.
func Listen(o Options) (*Server, error) {
	if o.Port == 0 {
		o.Port = dnsPort
	}
	if o.ResolvConf == "" {
		o.ResolvConf = resolvConfPath
	}
	s := &Server{o: o, asking: make(chan struct{}, maxAsking), conns: make(chan struct{}, maxConns)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, p := range o.Gateways {
		s.own = append(s.own, netip.AddrPortFrom(p.Addr(), o.Port))
		s.zone.prefixes = append(s.zone.prefixes, p.Masked())
	}
	s.zone.canary = s.canaryOf
	s.forward = forwarder{conf: &resolvConf{path: o.ResolvConf, port: dnsPort}, own: s.own,
		long: make(chan struct{}, maxLong)}
	s.sources.bySource = make(map[netip.Addr]*source)
	for _, a := range s.own {
		if err := s.listen(a.String()); err != nil {
			s.Close()
			return nil, fmt.Errorf("cannot listen on port %d of %s: %w", a.Port(), a.Addr(), err)
		}
	}
	return s, nil
}

func (s *Server) listen(address string) error {
	c := net.ListenConfig{
		Control: func(_, _ string, raw syscall.RawConn) error { return control(raw) },
	}
	u, err := c.ListenPacket(s.ctx, "udp", address)
	if err != nil {
		return err
	}
	s.udp = append(s.udp, u.(*net.UDPConn))
	t, err := c.Listen(s.ctx, "tcp", address)
	if err != nil {
		return err
	}
	s.tcp = append(s.tcp, t)
	return nil
}

// control lets a socket bind an address that is not ready yet, such as an IPv6 address whose
// uniqueness the kernel still checks, and sets its buffers.
func control(raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		// This needs root. Otherwise the usual size has to do.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sockBuffer)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, sockBuffer)
	})
}

// Serve begins to answer.
func (s *Server) Serve(names Names) {
	s.zone.names = names
	for _, c := range s.udp {
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			s.serveUDP(c)
		}()
	}
	for _, l := range s.tcp {
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			s.serveTCP(l)
		}()
	}
}

// Addresses are those on which it answers.
func (s *Server) Addresses() []netip.Addr {
	var all []netip.Addr
	for _, a := range s.own {
		all = append(all, a.Addr())
	}
	return all
}

// Close ends it and waits for all its goroutines.
func (s *Server) Close() error {
	s.cancel()
	var errs []error
	for _, c := range s.udp {
		errs = append(errs, c.Close())
	}
	for _, l := range s.tcp {
		errs = append(errs, l.Close())
	}
	s.work.Wait()
	return errors.Join(errs...)
}

// mayAsk reports whether the source is a guest or the host. The kernel drops packets of other hosts
// with an address of this one.
func (s *Server) mayAsk(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	for _, p := range s.zone.prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return s.host.has(a)
}

// serveUDP answers one query after the other; only those that wait for a resolver have goroutines.
func (s *Server) serveUDP(c *net.UDPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return // closed already
	}
	buf := make([]byte, maxQuery)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || !s.rest() {
				return
			}
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if !s.mayAsk(from.Addr()) || !s.sources.take(from.Addr()) {
			continue
		}
		reply, query, size := s.answer(buf[:n])
		if reply == nil {
			continue
		}
		if query != nil && s.mayForward(from.Addr()) && s.begin(from.Addr()) {
			s.work.Add(1)
			go func() {
				defer s.work.Done()
				defer s.end(from.Addr())
				s.resolve(reply, query, false)
				send(raw, from, pack(reply, size))
			}()
			continue
		}
		if query != nil {
			reply.Rcode = dns.RcodeServerFailure
		}
		send(raw, from, pack(reply, size))
	}
}

// rest waits a moment after an error that may come again at once; false when the server ends.
func (s *Server) rest() bool {
	select {
	case <-time.After(sendRetry):
		return true
	case <-s.ctx.Done():
		return false
	}
}

// mayForward bounds what resolvers are asked for a guest; the host's own programs need no bound.
func (s *Server) mayForward(from netip.Addr) bool {
	return s.host.has(from) || s.sources.forward(from)
}

// begin takes a slot for a query that waits for a resolver, end gives it back.
func (s *Server) begin(from netip.Addr) bool {
	if !s.sources.begin(from, maxAsking-len(s.asking)) {
		return false
	}
	select {
	case s.asking <- struct{}{}:
		return true
	default:
		s.sources.end(from)
		return false
	}
}

func (s *Server) end(from netip.Addr) {
	<-s.asking
	s.sources.end(from)
}

// send never waits: a reply for which there is no room is lost, as on any network.
func send(raw syscall.RawConn, to netip.AddrPort, b []byte) {
	if len(b) == 0 {
		return
	}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(to.Port())}
	if a := to.Addr(); a.Is4() {
		sa.(*unix.SockaddrInet4).Addr = a.As4()
	} else {
		sa = &unix.SockaddrInet6{Port: int(to.Port()), Addr: a.As16()}
	}
	_ = raw.Write(func(fd uintptr) bool {
		_ = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, sa)
		return true
	})
}

func (s *Server) serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || !s.rest() {
				return
			}
			continue
		}
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if !s.mayAsk(from) || !s.admit(from) {
			_ = c.Close()
			continue
		}
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			defer s.leave(from)
			defer c.Close()
			defer context.AfterFunc(s.ctx, func() { _ = c.Close() })()
			for end := time.Now().Add(tcpLife); s.serveOne(c, from, end); {
			}
		}()
	}
}

func (s *Server) admit(from netip.Addr) bool {
	if !s.sources.connect(from, maxConns-len(s.conns)) {
		return false
	}
	select {
	case s.conns <- struct{}{}:
		return true
	default:
		s.sources.disconnect(from)
		return false
	}
}

func (s *Server) leave(from netip.Addr) {
	<-s.conns
	s.sources.disconnect(from)
}

// serveOne waits until then for the next query of a connection, and answers it. False ends the
// connection.
func (s *Server) serveOne(c net.Conn, from netip.Addr, end time.Time) bool {
	deadline := time.Now().Add(tcpIdle)
	if end.Before(deadline) {
		deadline = end
	}
	_ = c.SetReadDeadline(deadline)
	b, err := readFrame(c, maxQuery)
	if err != nil || !s.sources.take(from) {
		return false
	}
	reply, query, _ := s.answer(b)
	if reply == nil {
		return false
	}
	if query != nil {
		if s.mayForward(from) && s.begin(from) {
			s.resolve(reply, query, true)
			s.end(from)
		} else {
			reply.Rcode = dns.RcodeServerFailure
		}
	}
	b = pack(reply, dns.MaxMsgSize)
	_ = c.SetWriteDeadline(time.Now().Add(tcpWrite))
	_, err = c.Write(framed(b))
	return err == nil
}
