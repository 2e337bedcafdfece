package main

import (
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"banger/vmm/guest"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

func TestFromHost(t *testing.T) {
	for _, x := range []struct {
		peer net.Addr
		want bool
	}{
		{&vsock.Addr{ContextID: 2, Port: 1023}, true},
		{&vsock.Addr{ContextID: 0}, false},
		{&vsock.Addr{ContextID: 1}, false}, // vsock_loopback
		{&vsock.Addr{ContextID: 65537}, false},
		{&vsock.Addr{ContextID: unix.VMADDR_CID_ANY}, false},
		{&net.UnixAddr{Name: "2"}, false},
		{nil, false},
	} {
		if got := fromHost(x.peer); got != x.want {
			t.Errorf("%v: %v", x.peer, got)
		}
	}
}

// peers is a listener that accepts one connection from each of these addresses.
type peers []uint32

func (p *peers) Accept() (net.Conn, error) {
	if len(*p) == 0 {
		return nil, net.ErrClosed
	}
	cid := (*p)[0]
	*p = (*p)[1:]
	near, far := net.Pipe()
	far.Close()
	return &from{near, &vsock.Addr{ContextID: cid}}, nil
}

func (p *peers) Close() error   { return nil }
func (p *peers) Addr() net.Addr { return &vsock.Addr{} }

type from struct {
	net.Conn
	peer net.Addr
}

func (f *from) RemoteAddr() net.Addr { return f.peer }

func TestHostOnly(t *testing.T) {
	l := hostOnly{&peers{1, 7, vsock.Host, 1, vsock.Host, 3}}
	for range 2 {
		if conn, err := l.Accept(); err != nil || !fromHost(conn.RemoteAddr()) {
			t.Fatalf("%v, %v", conn, err)
		}
	}
	if conn, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, %v", conn, err)
	}
}

// TestLoopback connects to the listener from inside the guest.
func TestLoopback(t *testing.T) {
	const port = 29_117
	l, err := listenVsock(port)
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("no /dev/vsock: modprobe vsock_loopback")
	}
	if err != nil {
		t.Fatal(err)
	}
	// A gate that has a secret challenges every connection that it accepts.
	gate := new(guest.Gate)
	handed := httptest.NewRecorder()
	body := `{"secret":"` + base64.StdEncoding.EncodeToString(make([]byte, 32)) + `"}`
	handOver := httptest.NewRequest(http.MethodPost, "/vsock", strings.NewReader(body))
	gate.PortHandler(http.NotFoundHandler()).ServeHTTP(handed, handOver)
	if handed.Code != http.StatusOK {
		t.Fatal(handed.Body)
	}
	ended := make(chan error, 1)
	go func() { ended <- gate.Serve(hostOnly{l}, http.NotFoundHandler()) }()
	defer func() {
		l.Close()
		if err := <-ended; err == nil {
			t.Error("the gate ended without an error")
		}
	}()
	conn, err := vsock.Dial(unix.VMADDR_CID_LOCAL, port, nil)
	if err != nil {
		t.Skipf("no loopback: modprobe vsock_loopback (%v)", err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v", n, err)
	}
}
