package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"banger/internal/audit"
	"banger/vmm"
)

const (
	importIdle  = 2 * time.Minute // without a write until an import ends
	maxNameLine = 256             // bytes of the first line
)

// importOpen opens an import. Its first line is the name of the new VM, empty for the one in the
// archive that follows.
func importOpen(r *openRequest) (handle, error) {
	return &importer{
		server: r.server, owner: vmm.Owner{UID: r.uid, GID: r.gid, Mode: 0o755},
		written: make(chan struct{}), wanted: make(chan struct{}), done: make(chan struct{}),
	}, nil
}

// importer passes what is written to an import. A write returns when the import wants more or has
// ended, so that the last write returns the import's error.
type importer struct {
	server  *Server
	owner   vmm.Owner
	written chan struct{} // a write has filled chunk
	wanted  chan struct{} // chunk is used up
	done    chan struct{} // closed at the import's end, when err is valid
	err     error

	// mu serializes writes and guards what follows. Between written and wanted the import owns
	// chunk.
	mu     sync.Mutex
	head   []byte // of the first line, until that is whole
	cancel context.CancelFunc
	chunk  bytes.Reader
}

func importWrite(w *writeRequest, p []byte) (int, error) {
	i, ok := w.handle.(*importer)
	if !ok {
		return 0, fmt.Errorf("cannot import: open the file write-only: %w", vmm.ErrInvalid)
	}
	return i.write(&w.call, bytes.Clone(p))
}

func (i *importer) write(c *call, p []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := len(p)
	if i.cancel == nil {
		name, rest, whole := bytes.Cut(append(i.head, p...), []byte("\n"))
		if !whole {
			i.head = name
		}
		if len(name) > maxNameLine {
			return 0, fmt.Errorf("cannot import: the first line is the name of the new VM, "+
				"empty for the one that it had: %w", vmm.ErrInvalid)
		}
		if !whole {
			return n, nil
		}
		i.begin(c, strings.TrimSpace(string(name)))
		if p = rest; len(p) == 0 {
			return n, nil
		}
	}
	i.chunk.Reset(p)
	defer i.chunk.Reset(nil) // a file that stays open keeps none of it
	select {
	case i.written <- struct{}{}:
	case <-i.done:
		return i.result(n)
	case <-c.ctx.Done():
		i.cancel()
		return 0, c.ctx.Err()
	}
	select {
	case <-i.wanted:
		return n, nil
	case <-i.done:
		return i.result(n)
	case <-c.ctx.Done():
		i.cancel()
		<-i.done // it reads p
		return 0, c.ctx.Err()
	}
}

// result returns what a write returns after the import's end. Bytes behind the archive mean
// nothing.
func (i *importer) result(n int) (int, error) {
	if i.err != nil {
		return 0, i.err
	}
	return n, nil
}

// begin starts the import, which ends with the archive, the file or the mount. A line of the audit
// tells its result before a write returns it.
func (i *importer) begin(c *call, name string) {
	ctx, cancel := context.WithCancel(i.server.ctx)
	i.cancel = cancel
	who := c.caller()
	i.server.changes.Go(func() {
		defer close(i.done)
		defer cancel()
		from := &chunks{importer: i, ctx: ctx, idle: importIdle}
		made, err := i.server.o.Archives.Import(ctx, name, i.owner, from)
		i.err = err
		if made != nil {
			name = made.Snapshot().Name
		}
		path := func() string { return "vms/" + name }
		i.server.tell(nil, who, audit.Change, true, path, "import", status(errno(err)))
	})
}

func (i *importer) read(*call, []byte, int64) ([]byte, error) { return nil, nil }

// close ends an import that is not whole, and waits for its cleanup.
func (i *importer) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cancel != nil {
		i.cancel()
		<-i.done
	}
}

// chunks reads what is written, one write at a time.
type chunks struct {
	*importer
	ctx  context.Context
	idle time.Duration
	full bool // chunk holds a write
}

func (c *chunks) Read(p []byte) (int, error) {
	for {
		if c.full && c.chunk.Len() > 0 {
			return c.chunk.Read(p)
		}
		if c.full {
			c.full = false
			select {
			case c.wanted <- struct{}{}:
			case <-c.ctx.Done():
				return 0, errors.Join(c.ctx.Err(), io.ErrUnexpectedEOF)
			}
		}
		late := time.NewTimer(c.idle)
		select {
		case <-c.written:
			c.full = true
		case <-late.C:
			return 0, fmt.Errorf("nothing was written for %v: %w", c.idle, context.DeadlineExceeded)
		case <-c.ctx.Done():
			return 0, errors.Join(c.ctx.Err(), io.ErrUnexpectedEOF)
		}
		late.Stop()
	}
}
