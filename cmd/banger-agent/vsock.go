package main

import (
	"net"
	"os"

	"banger/vmm/guest"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

const (
	// vsockBacklog is how many connections may wait to be accepted.
	vsockBacklog = guest.MaxUnproved
	// narrow is how many unread bytes the kernel keeps of a peer that has not proved itself; wide,
	// the kernel's default, is for the others.
	narrow = 4 << 10
	wide   = 256 << 10
)

// listenVsock listens on a port of vsock. The error is os.ErrNotExist in a guest without vsock.
func listenVsock(port uint32) (net.Listener, error) {
	if _, err := os.Stat("/dev/vsock"); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "vsock")
	defer f.Close() // FileListener has one of its own
	if err := setBuffer(fd, narrow); err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, vsockBacklog); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	return vsock.FileListener(f)
}

// setBuffer bounds the unread bytes that the kernel keeps of a socket (linux/vm_sockets.h).
// Accepted connections inherit the bound of their listener.
func setBuffer(fd int, bytes uint64) error {
	const option = unix.SO_VM_SOCKETS_BUFFER_SIZE
	return os.NewSyscallError("setsockopt", unix.SetsockoptUint64(fd, unix.AF_VSOCK, option, bytes))
}

// widen gives a connection the buffer that it needs for its pace. Without it, it is only slower.
func widen(conn net.Conn) {
	c, ok := conn.(*vsock.Conn)
	if !ok {
		return
	}
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = setBuffer(int(fd), wide) })
	}
}

// hostOnly accepts connections of the host. It closes those of processes in this guest, which
// vsock_loopback makes possible, and those of guests of this guest.
type hostOnly struct{ net.Listener }

func (l hostOnly) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || fromHost(conn.RemoteAddr()) {
			return conn, err
		}
		conn.Close()
	}
}

func fromHost(a net.Addr) bool {
	peer, ok := a.(*vsock.Addr)
	return ok && peer.ContextID == vsock.Host
}
