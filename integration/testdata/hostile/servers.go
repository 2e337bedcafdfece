package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"
)

// The guest's ports. At elsewherePort and the seven after it the test listens on the host's side.
const (
	plainPort     = 80
	tlsPort       = 443
	elsewherePort = 8090
)

// servers is the list of what serveHTTP serves.
const servers = `[
{"protocol":"tcp","port":80,"process":"plain"}, {"protocol":"tcp","port":81,"process":"redirect"},
{"protocol":"tcp","port":82,"process":"headers"}, {"protocol":"tcp","port":83,"process":"continue"},
{"protocol":"tcp","port":84,"process":"body"}, {"protocol":"tcp","port":85,"process":"silent"},
{"protocol":"tcp","port":443,"process":"tls"}, {"protocol":"tcp","port":444,"process":"slow-tls"},
{"protocol":"tcp","port":445,"process":"endless-tls"}]`

// serveHTTP serves what the host's probe finds, well behaved and not.
func serveHTTP(gateway *atomic.Pointer[netip.Addr]) {
	// 81: to what listens on the host, through its loopback and its bridge, by turns.
	var turn atomic.Int32
	redirect := func(w http.ResponseWriter, r *http.Request) {
		to := "127.0.0.1"
		if turn.Add(1)%2 == 0 {
			to = gateway.Load().String()
		}
		http.Redirect(w, r, fmt.Sprintf("http://%s:%d/", to, elsewherePort+1), http.StatusFound)
	}
	plain := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "plain\n") }
	go serve(plainPort, http.HandlerFunc(plain))
	go serve(elsewherePort, http.HandlerFunc(plain))
	go serve(81, http.HandlerFunc(redirect))
	go answer(82, "HTTP/1.1 200 OK\r\n", "X-Header: value\r\n")
	go answer(83, "", "HTTP/1.1 100 Continue\r\n\r\n")
	go answer(84, "HTTP/1.1 200 OK\r\n\r\n", "body body body\n")
	go accept(85, func(c net.Conn) { io.Copy(io.Discard, c) })

	config := &tls.Config{Certificates: []tls.Certificate{certificate()}}
	go accept(tlsPort, func(c net.Conn) {
		t := tls.Server(c, config)
		buf := make([]byte, 4096)
		if _, err := t.Read(buf); err == nil {
			io.WriteString(t, "HTTP/1.1 204 No Content\r\n\r\n")
			t.CloseWrite()
		}
	})
	go accept(444, func(c net.Conn) { tls.Server(slowConn{c}, config).Handshake() })
	// The longest record that is allowed, of the handshake, again and again.
	record := append([]byte{22, 3, 3, 0x40, 0}, make([]byte, 1<<14)...)
	go answer(445, "", string(record))
}

func serve(port int, h http.Handler) {
	log.Print(http.ListenAndServe(fmt.Sprintf(":%d", port), h))
}

func accept(port int, handle func(net.Conn)) {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		log.Print(err)
		return
	}
	for {
		c, err := l.Accept()
		if err != nil {
			log.Print(err)
			return
		}
		go func() {
			defer c.Close()
			handle(c)
		}()
	}
}

// answer says first, and then again and again what follows.
func answer(port int, first, again string) {
	accept(port, func(c net.Conn) {
		buf := make([]byte, 4096)
		if _, err := c.Read(buf); err != nil {
			return
		}
		_, err := io.WriteString(c, first)
		for err == nil {
			_, err = io.WriteString(c, again)
		}
	})
}

// slowConn sends a byte each tenth of a second.
type slowConn struct{ net.Conn }

func (s slowConn) Write(b []byte) (int, error) {
	for i := range b {
		time.Sleep(100 * time.Millisecond)
		if _, err := s.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

func certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Print(err)
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		log.Print(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
