package fake

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"banger/internal/host"
	"banger/vmm"
)

const (
	maxPending = 256 << 10
	maxLine    = 4 << 10
)

// console is a machine's serial line.
type console struct {
	mu      sync.Mutex
	line    []byte // what was typed since the last end of line
	readers map[*reader]bool

	// file orders the writes of console.log; taken without mu.
	file sync.Mutex
	grew int64 // bytes since console.log was last trimmed; guarded by file
}

// print sends text to all readers and appends it to console.log.
func (m *machine) print(text string) {
	c := &m.console
	c.mu.Lock()
	for r := range c.readers {
		r.pending = append(r.pending, text...)
		r.pending = r.pending[max(0, len(r.pending)-maxPending):]
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
	c.mu.Unlock()

	c.file.Lock()
	defer c.file.Unlock()
	path := filepath.Join(m.dir, vmm.ConsoleFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	n, _ := f.WriteString(text)
	if c.grew += int64(n); c.grew > host.TailMax && host.TrimHead(f, host.TailKeep) == nil {
		c.grew = 0
	}
}

// terminal implements vmm.Console.
type terminal struct{ m *machine }

func (t terminal) Write(ctx context.Context, p []byte) (int, error) {
	if err := t.m.awake(ctx); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return 0, err
	}
	c := &t.m.console
	c.mu.Lock()
	c.line = append(c.line, p...)
	var lines []string
	for {
		i := bytes.IndexAny(c.line, "\r\n")
		if i < 0 {
			break
		}
		lines = append(lines, strings.TrimSpace(string(c.line[:i])))
		c.line = c.line[i+1:]
	}
	c.line = c.line[max(0, len(c.line)-maxLine):]
	c.mu.Unlock()
	t.m.print(strings.ReplaceAll(string(p), "\n", "\r\n"))
	for _, line := range lines {
		switch line {
		case "poweroff":
			t.m.end(end{exit: poweredOff})
		case "reboot":
			t.m.end(end{exit: rebooted})
		case "panic":
			t.m.end(end{panic: true, exit: panicked})
		}
	}
	return len(p), nil
}

func (t terminal) Subscribe() vmm.ConsoleReader {
	r := &reader{m: t.m, wake: make(chan struct{}, 1)}
	c := &t.m.console
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.readers == nil {
		c.readers = map[*reader]bool{}
	}
	c.readers[r] = true
	return r
}

// reader implements vmm.ConsoleReader.
type reader struct {
	m       *machine
	wake    chan struct{}
	pending []byte // guarded by m.console.mu
}

func (r *reader) take(p []byte) int {
	r.m.console.mu.Lock()
	defer r.m.console.mu.Unlock()
	n := copy(p, r.pending)
	if r.pending = r.pending[n:]; len(r.pending) == 0 {
		r.pending = nil // it may never be needed again
	}
	return n
}

func (r *reader) Read(ctx context.Context, p []byte) (int, error) {
	for {
		if n := r.take(p); n > 0 || len(p) == 0 {
			return n, nil
		}
		select {
		case <-r.wake:
		case <-r.m.done:
			if n := r.take(p); n > 0 {
				return n, nil
			}
			return 0, io.EOF
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (r *reader) Close() error {
	r.m.console.mu.Lock()
	defer r.m.console.mu.Unlock()
	delete(r.m.console.readers, r)
	return nil
}
