package guest

import (
	"io"
	"net"
	"testing"
	"time"
)

func TestQuietConn(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	q := NewQuietConn(near)
	read := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(q, make([]byte, 5))
		read <- err
	}()
	spoke := make(chan struct{})
	go func() { // the far end speaks first
		far.Write([]byte("hello"))
		close(spoke)
	}()
	select {
	case <-spoke: // a pipe's write ends when it was read
		t.Error("something was read before anything was written")
	case <-time.After(50 * time.Millisecond): // it would have been by now
	}
	go io.Copy(io.Discard, far)
	if _, err := q.Write([]byte("GET")); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	// Who waits to read is freed by Close.
	near, far2 := net.Pipe()
	defer far2.Close()
	q = NewQuietConn(near)
	go func() {
		_, err := q.Read(make([]byte, 1))
		read <- err
	}()
	q.Close()
	if err := <-read; err == nil {
		t.Error("a closed connection was read")
	}
}
