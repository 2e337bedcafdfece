package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/host"
	"banger/vmm"

	"golang.org/x/sys/unix"
)

func TestConsole(t *testing.T) {
	near, guest := net.Pipe()
	panics := make(chan string, 1)
	c := newConsole(near, nil, func(line string) { panics <- line })
	defer c.Close()
	r := c.Subscribe()
	defer r.Close()

	ctx := within(t, 10*time.Second)
	io.WriteString(guest, "[    1.0] Kernel panic - not ")
	io.WriteString(guest, "syncing: oops\r\nmore\n")
	if got := <-panics; got != "Kernel panic - not syncing: oops" {
		t.Errorf("panic %q", got)
	}
	var got []byte
	buf := make([]byte, 7)
	for !bytes.HasSuffix(got, []byte("more\n")) {
		n, err := r.Read(ctx, buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	if n := len(r.(*subscriber).buf); n != 0 {
		t.Errorf("%d pending", n)
	}

	// The guest reads nothing: ctx ends the write, and the next write is whole.
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := c.Write(short, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
	typed := make(chan string)
	go func() {
		b := make([]byte, 2)
		io.ReadFull(guest, b)
		typed <- string(b)
	}()
	if n, err := c.Write(ctx, []byte("ls")); n != 2 || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
	if s := <-typed; s != "ls" {
		t.Errorf("typed %q", s)
	}

	// A slow reader loses the oldest bytes.
	for range 5 {
		guest.Write(bytes.Repeat([]byte("a"), subscriberMax/4))
	}
	io.WriteString(guest, "end")
	guest.Close()
	<-c.done
	if n := len(r.(*subscriber).buf); n != subscriberMax {
		t.Errorf("%d pending", n)
	}
	rest, err := io.ReadAll(readerFunc(func(p []byte) (int, error) { return r.Read(ctx, p) }))
	if err != nil || len(rest) != subscriberMax || !bytes.HasSuffix(rest, []byte("aend")) {
		t.Errorf("%d bytes, %v", len(rest), err)
	}
	if _, err := c.Write(ctx, []byte("x")); !errors.Is(err, vmm.ErrNotRunning) {
		t.Errorf("write to a dead line: %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestConsoleTrims(t *testing.T) {
	path := filepath.Join(t.TempDir(), vmm.ConsoleFile)
	line := bytes.Repeat([]byte("0123456789abcde\n"), 2*host.TailMax/16)
	if err := os.WriteFile(path, line, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, guest := net.Pipe()
	c := newConsole(near, f, func(string) {})
	guest.Close()
	<-c.done
	c.Close()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	kept := st.Blocks * 512
	if kept < host.TailKeep || kept > host.TailMax || st.Size != int64(len(line)) {
		t.Errorf("%d of %d bytes kept", kept, st.Size)
	}
}

func TestPanicScannerIsBounded(t *testing.T) {
	var p panicScanner
	for range 100 {
		p.scan(bytes.Repeat([]byte("x"), 4096))
	}
	if len(p.line) > 256 {
		t.Errorf("%d bytes kept", len(p.line))
	}
	if got := p.scan([]byte(fmt.Sprintf("\n%s: a\nb", panicMark))); got != string(panicMark)+": a" {
		t.Errorf("%q", got)
	}
}
