package qemu

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"banger/internal/host"
	"banger/vmm"
)

const subscriberMax = 256 << 10

var panicMark = []byte("Kernel panic - not syncing")

// console is the daemon's end of the serial line. Its goroutine drains the line for as long as QEMU
// lives, so that the guest never waits for the daemon. It also trims the file to which QEMU appends
// the same output.
type console struct {
	conn    net.Conn
	file    *os.File // for trimming; nil if it could not be opened
	onPanic func(line string)
	typing  chan struct{} // holds a token while no write is under way
	done    chan struct{} // closed when the line has ended

	mu   sync.Mutex
	subs map[*subscriber]bool
}

// newConsole starts to drain conn. The console owns conn and file.
func newConsole(conn net.Conn, file *os.File, onPanic func(line string)) *console {
	c := &console{
		conn: conn, file: file, onPanic: onPanic,
		typing: make(chan struct{}, 1),
		done:   make(chan struct{}),
		subs:   map[*subscriber]bool{},
	}
	c.typing <- struct{}{}
	go c.drain()
	return c
}

// Close ends the line and returns when its goroutine has ended.
func (c *console) Close() {
	c.conn.Close()
	<-c.done
}

func (c *console) drain() {
	defer close(c.done)
	defer c.conn.Close()
	if c.file != nil {
		defer c.file.Close()
	}
	c.trim()
	buf := make([]byte, 32<<10)
	var scan panicScanner
	grown := 0
	for {
		n, err := c.conn.Read(buf)
		if n > 0 {
			c.publish(buf[:n])
			if line := scan.scan(buf[:n]); line != "" {
				c.onPanic(line)
			}
			if grown += n; grown > host.TailMax {
				grown = 0
				c.trim()
			}
		}
		if err != nil {
			return
		}
	}
}

func (c *console) trim() {
	if c.file != nil {
		// A file system that cannot punch holes keeps the file whole.
		_ = host.TrimHead(c.file, host.TailKeep)
	}
}

func (c *console) publish(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.subs {
		s.put(p)
	}
}

// Write implements vmm.Console.
func (c *console) Write(ctx context.Context, p []byte) (int, error) {
	select {
	case <-c.typing:
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-c.done:
		return 0, vmm.ErrNotRunning
	}
	defer func() { c.typing <- struct{}{} }()
	if err := c.conn.SetWriteDeadline(time.Time{}); err != nil {
		return 0, vmm.ErrNotRunning
	}
	release := host.Deadline(ctx, c.conn.SetWriteDeadline)
	n, err := c.conn.Write(p)
	release()
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
		return n, ctx.Err()
	}
	return n, vmm.ErrNotRunning
}

// Subscribe implements vmm.Console.
func (c *console) Subscribe() vmm.ConsoleReader {
	s := &subscriber{c: c, wake: make(chan struct{}, 1)}
	c.mu.Lock()
	c.subs[s] = true
	c.mu.Unlock()
	return s
}

// subscriber is one reader. It loses its oldest bytes when it is too slow.
type subscriber struct {
	c    *console
	wake chan struct{} // holds a token when buf has grown

	mu  sync.Mutex
	buf []byte
}

func (s *subscriber) put(p []byte) {
	s.mu.Lock()
	p = p[max(0, len(p)-subscriberMax):]
	if over := len(s.buf) + len(p) - subscriberMax; over > 0 {
		s.buf = append(s.buf[:0], s.buf[over:]...)
	}
	s.buf = append(s.buf, p...)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscriber) drain(p []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := copy(p, s.buf)
	if s.buf = append(s.buf[:0], s.buf[n:]...); len(s.buf) == 0 {
		s.buf = nil // much memory, for a line that may stay silent
	}
	return n
}

// Read implements vmm.ConsoleReader.
func (s *subscriber) Read(ctx context.Context, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if n := s.drain(p); n > 0 {
			return n, nil
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-s.c.done:
			if n := s.drain(p); n > 0 {
				return n, nil
			}
			return 0, io.EOF
		}
	}
}

// Close implements vmm.ConsoleReader.
func (s *subscriber) Close() error {
	s.c.mu.Lock()
	delete(s.c.subs, s)
	s.c.mu.Unlock()
	return nil
}

// panicScanner finds the kernel's line about its panic in the console's output. microvm has no
// pvpanic, and a kernel that panics with panic=-1 only resets.
type panicScanner struct {
	line []byte // the line so far, at most 256 bytes
}

// scan returns the line if b completes it, and "" otherwise.
func (p *panicScanner) scan(b []byte) string {
	found := ""
	for len(b) > 0 {
		part, rest, complete := bytes.Cut(b, []byte("\n"))
		if room := 256 - len(p.line); len(part) > room {
			part = part[:room]
		}
		p.line = append(p.line, part...)
		b = rest
		if !complete {
			break
		}
		if i := bytes.Index(p.line, panicMark); i >= 0 {
			found = string(bytes.TrimSpace(p.line[i:]))
		}
		p.line = p.line[:0]
	}
	return found
}
