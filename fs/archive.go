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

	"banger/vmm"
)

// Exports that are open at once, each of which keeps copies of disks: of one VM, and of one user.
const (
	maxExports       = 4
	maxExportsOfUser = 8
)

// exportOpen makes an archive of the VM, which takes as long as its disks are long.
func exportOpen(r *request, _ bool) (handle, error) {
	ofVM, ofUser, serial, uid := &r.server.exports, &r.server.exporters, r.vm.Serial(), uint64(r.uid)
	if !ofVM.acquire(serial) {
		return nil, r.tooMany("%s has %d exports open: close some: %w",
			r.snap().Name, ofVM.most, vmm.ErrBusy)
	}
	if !ofUser.acquire(uid) {
		ofVM.release(serial)
		return nil, r.tooMany("uid %d has %d exports open: close some: %w", uid, ofUser.most, vmm.ErrBusy)
	}
	end := func() {
		ofVM.release(serial)
		ofUser.release(uid)
	}
	defer r.blocking()()
	a, err := r.server.o.Archives.Export(r.ctx, r.vm)
	if err != nil {
		end()
		r.vm.Fail(err)
		return nil, err
	}
	return archive{a, end}, nil
}

type archive struct {
	vmm.Archive
	end func()
}

func (a archive) read(_ *request, n int, off int64) ([]byte, error) {
	p := make([]byte, n)
	n, err := a.ReadAt(p, off)
	if err == io.EOF {
		err = nil
	}
	return p[:n], err
}

func (a archive) close() {
	a.Close()
	a.end()
}

// importIdle is how long an import waits for the next write.
const importIdle = 2 * time.Minute

// maxNameLine bounds the first line of what is imported.
const maxNameLine = 256

// importOpen takes a line with the name of the new VM, empty for the one that it had, and then an archive.
func importOpen(r *request, _ bool) (handle, error) {
	return &intake{server: r.server, owner: vmm.Owner{UID: r.uid, GID: r.gid, Mode: 0o755}, more: make(chan struct{}), wants: make(chan struct{}), done: make(chan struct{})}, nil
}

// intake passes what is written to an import. A write ends when the import wants more or has ended, so that the last one tells how it ended.
type intake struct {
	server *Server
	owner  vmm.Owner
	more   chan struct{} // a write has brought chunk
	wants  chan struct{} // chunk is used up
	done   chan struct{} // closed when the import has ended, err is valid
	err    error

	mu     sync.Mutex // one write at a time; guards what follows, but for what the import does with chunk between more and wants
	head   []byte     // of the first line, until that is whole
	cancel context.CancelFunc
	chunk  bytes.Reader
}

func importType(r *request, p []byte) (int, error) {
	in, ok := r.handle.(*intake)
	if !ok {
		return 0, fmt.Errorf("cannot import: write to the file as it was opened: %w", vmm.ErrInvalid)
	}
	return in.write(r, bytes.Clone(p))
}

func (in *intake) write(r *request, p []byte) (int, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	n := len(p)
	if in.cancel == nil {
		name, rest, whole := bytes.Cut(append(in.head, p...), []byte("\n"))
		if !whole {
			in.head = name
		}
		if len(name) > maxNameLine {
			return 0, fmt.Errorf("cannot import: the first line is the name of the new VM, empty for the one that it had: %w", vmm.ErrInvalid)
		}
		if !whole {
			return n, nil
		}
		in.begin(strings.TrimSpace(string(name)))
		if p = rest; len(p) == 0 {
			return n, nil
		}
	}
	in.chunk.Reset(p)
	defer in.chunk.Reset(nil) // a file that stays open keeps nothing of it
	select {
	case in.more <- struct{}{}:
	case <-in.done:
		return in.ended(n)
	case <-r.ctx.Done():
		in.cancel()
		return 0, r.ctx.Err()
	}
	select {
	case <-in.wants:
		return n, nil
	case <-in.done:
		return in.ended(n)
	case <-r.ctx.Done():
		in.cancel()
		<-in.done // it has p
		return 0, r.ctx.Err()
	}
}

// ended is what a write gives that the import's end met: bytes behind the archive mean nothing.
func (in *intake) ended(n int) (int, error) {
	if in.err != nil {
		return 0, in.err
	}
	return n, nil
}

// begin starts the import, which ends with the archive, with the file, or with the mount.
func (in *intake) begin(name string) {
	ctx, cancel := context.WithCancel(in.server.ctx)
	in.cancel = cancel
	in.server.begun.Add(1)
	go func() {
		defer in.server.begun.Done()
		defer close(in.done)
		defer cancel()
		from := &chunks{in: in, ctx: ctx, idle: importIdle}
		_, in.err = in.server.o.Archives.Import(ctx, name, in.owner, from)
	}()
}

func (in *intake) read(*request, int, int64) ([]byte, error) { return nil, nil }

// close ends an import that is not whole, and waits until nothing is left of it.
func (in *intake) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.cancel != nil {
		in.cancel()
		<-in.done
	}
}

// chunks reads what is written, a write at a time.
type chunks struct {
	in   *intake
	ctx  context.Context
	idle time.Duration
	have bool
}

func (c *chunks) Read(p []byte) (int, error) {
	for {
		if c.have && c.in.chunk.Len() > 0 {
			return c.in.chunk.Read(p)
		}
		if c.have {
			c.have = false
			select {
			case c.in.wants <- struct{}{}:
			case <-c.ctx.Done():
				return 0, errors.Join(c.ctx.Err(), io.ErrUnexpectedEOF)
			}
		}
		late := time.NewTimer(c.idle)
		select {
		case <-c.in.more:
			c.have = true
		case <-late.C:
			return 0, fmt.Errorf("nothing was written for %v: %w", c.idle, context.DeadlineExceeded)
		case <-c.ctx.Done():
			return 0, errors.Join(c.ctx.Err(), io.ErrUnexpectedEOF)
		}
		late.Stop()
	}
}
