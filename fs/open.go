package fs

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm"
)

const maxWrite = 4096 // bytes of one command

func (s raw) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	r, code := s.request(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	access := in.Flags & syscall.O_ACCMODE
	if access != syscall.O_RDONLY && !r.file.writable() {
		return fuse.EACCES
	}
	if access != syscall.O_RDONLY {
		s.nodes.writing(r.node)
	}
	r.nonblock = in.Flags&syscall.O_NONBLOCK != 0
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH
	h := &opened{nonblock: r.nonblock, uid: r.uid, gid: r.gid}
	if code := s.begin(r, h, access); !code.Ok() {
		s.letGo(h)
		return code
	}
	switch h.handle.(type) {
	case terminal, *clone, execOutput:
		// A shell reads ahead on what it can seek in, and seeks back: bytes would be lost.
		out.OpenFlags |= fuse.FOPEN_STREAM | fuse.FOPEN_NONSEEKABLE
	}
	if r.file.heeds {
		h.heeds = r.node
		s.held.opened(r.node)
	}
	out.Fh = s.handles.add(h)
	return fuse.OK
}

// begin takes what the open file needs; the caller lets it go, also after an error.
func (s raw) begin(r *request, h *opened, access uint32) fuse.Status {
	var err error
	if h.share, err = s.newShare(r.uid); err != nil {
		return s.overdrawn(r, err)
	}
	if r.file.paths && access != syscall.O_RDONLY {
		if h.caller, err = r.keptCaller(); err != nil {
			s.fail(r, err)
			return errno(err)
		}
	}
	if r.session != nil {
		if !r.session.hold() {
			return fuse.ENOENT
		}
		h.session = r.session
	}
	if access == syscall.O_WRONLY && !r.file.takes {
		return fuse.OK
	}
	if h.handle, err = s.capture(r, access == syscall.O_RDWR); err != nil {
		return s.overdrawn(r, err)
	}
	if g, ok := h.handle.(*generated); ok {
		if err := h.share.Hold(int64(cap(g.capture))); err != nil {
			return s.overdrawn(r, err)
		}
	}
	return fuse.OK
}

// overdrawn is unread for what may have been refused because its user has too much open, which the
// top `error` then tells.
func (s *Server) overdrawn(r *request, err error) fuse.Status {
	if errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("cannot open more: %w", err)
		s.keepRefusal(r.uid, err)
	}
	return s.unread(r, err)
}

// capture runs the row's show once for this open, and tells the kernel its length.
func (s raw) capture(r *request, readWrite bool) (handle, error) {
	if r.file.open != nil {
		return r.file.open(r, readWrite)
	}
	b, err := s.text(r)
	if err != nil {
		if readWrite {
			return &generated{}, nil // it was opened to be written
		}
		return nil, err
	}
	return &generated{capture: b, at: time.Now()}, nil
}

// text runs the row's show, and tells the kernel its length. O_NONBLOCK means nothing here, as for
// files of procfs: grep -r opens with it, and a guest that answers late is no reason to leave a file
// out.
func (s raw) text(r *request) (capture, error) {
	if r.file.asks {
		defer r.blocking()()
	}
	b, err := r.file.show(r)
	if err != nil {
		return nil, err
	}
	s.tellSize(r.node, b)
	return clipped(b), nil
}

// clipped returns the text in no more memory than it needs, or about: it may be kept for long.
func clipped(b []byte) []byte {
	if cap(b)-len(b) > len(b)/4 {
		return bytes.Clone(b)
	}
	return b
}

func (s raw) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := s.handles.get(in.Fh)
	if h == nil || h.handle == nil {
		return nil, fuse.EBADF
	}
	if g, ok := h.handle.(*generated); ok {
		if code := s.renew(cancel, in, h, g); !code.Ok() {
			return nil, code
		}
		return fuse.ReadResultData(g.part(int(in.Size), int64(in.Offset))), fuse.OK
	}
	r := &request{
		server: s.Server, ctx: &fuse.Context{Caller: in.Caller, Cancel: cancel}, pid: in.Pid,
		nonblock: h.nonblock, answer: buf,
	}
	defer r.blocking()()
	b, err := h.handle.read(r, int(in.Size), int64(in.Offset))
	if err != nil {
		r, code := s.request(cancel, &in.InHeader)
		if !code.Ok() {
			return nil, code
		}
		return nil, s.unread(r, err)
	}
	return fuse.ReadResultData(b), fuse.OK
}

// renew captures anew for a read(2) or pread(2) from the beginning of a descriptor that is kept. Reads by way of the page cache, as for sendfile(2),
// name no lock owner (FUSE_READ_LOCKOWNER of linux/fuse.h): the kernel may repeat those.
func (s raw) renew(cancel <-chan struct{}, in *fuse.ReadIn, h *opened, g *generated) fuse.Status {
	if in.Offset != 0 || in.ReadFlags&fuse.READ_LOCKOWNER == 0 || !g.again() {
		return fuse.OK
	}
	r, code := s.request(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	r.uid, r.gid = h.uid, h.gid // who reads may be another
	c, err := s.text(r)
	if err != nil {
		return s.unread(r, err)
	}
	if err := g.renew(h, c); err != nil {
		return s.overdrawn(r, err)
	}
	return fuse.OK
}

// unread gives the errno of a read that failed, and logs what no other errno explains.
func (s *Server) unread(r *request, err error) fuse.Status {
	name, file := "", ""
	code := errno(err)
	if r.vm != nil {
		name = r.snap().Name
	}
	if r.file != nil {
		file = r.file.name
	}
	s.o.Log.Log(r.ctx, level(err, slog.LevelDebug), "cannot read", "vm", name, "file", file, "err", err)
	return code
}

// level returns the level of the log's line about a failure: the usual one, but for what only the log
// explains. What can no longer happen was logged where it failed.
func level(err error, usual slog.Level) slog.Level {
	if errno(err) == fuse.EIO && !errors.Is(err, vmm.ErrGone) {
		return slog.LevelError
	}
	return usual
}

// Write is one command; its offset means nothing.
func (s raw) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	r, code := s.request(cancel, &in.InHeader)
	if !code.Ok() {
		return 0, code
	}
	h := s.handles.get(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	if err := r.checkWriter(h); err != nil {
		s.fail(r, err)
		return 0, errno(err)
	}
	r.nonblock, r.handle, r.opener = h.nonblock, h.handle, h.caller
	r.more = in.Offset > 0 || in.Flags&syscall.O_APPEND != 0
	defer r.blocking()()
	if r.vm != nil {
		r.vm.Touch()
	}
	if r.file.typed != nil {
		n, err := r.file.typed(r, data)
		if err != nil && n == 0 {
			s.fail(r, err)
			return 0, errno(err)
		}
		return uint32(n), fuse.OK // a short write says how far it came
	}
	if err := s.store(r, data); err != nil {
		s.fail(r, err)
		return 0, errno(err)
	}
	if r.file.name != "state" { // a command to `state` clears it itself, before what it starts may fail
		s.failed(r, nil)
	}
	return uint32(len(data)), fuse.OK
}

func (s raw) store(r *request, data []byte) error {
	name := r.file.name
	if len(data) > maxWrite {
		return fmt.Errorf("cannot write %d bytes to %s of %s, at most %d at once: %w", len(data), name, r.whose(), maxWrite, vmm.ErrTooBig)
	}
	if strings.IndexByte(string(data), 0) >= 0 {
		return fmt.Errorf("cannot write a NUL byte to %s of %s: %w", name, r.whose(), vmm.ErrInvalid)
	}
	return r.file.store(r, strings.TrimSpace(string(data)))
}

func (s raw) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

func (s raw) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

func (s raw) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if h := s.handles.drop(in.Fh); h != nil {
		s.letGo(h)
	}
}

// letGo gives back what an open file holds.
func (s raw) letGo(h *opened) {
	if h.handle != nil {
		h.handle.close()
	}
	if h.session != nil {
		h.session.release()
	}
	h.caller.release()
	if h.heeds != 0 {
		s.held.closed(h.heeds)
	}
	h.share.Release()
}

// opened is one open file or directory.
type opened struct {
	handle handle // nil when opened only to be written
	// As the open said: what fcntl(2) sets later is left aside, because Go's runtime sets it on whatever seems pollable, and a
	// Go program that writes `start` or reads wait/ means to wait.
	nonblock bool
	uid, gid uint32      // whose file it is; nobody else writes to it
	caller   *keptCaller // of a row of paths opened to be written, else nil
	session  *session    // that it keeps alive
	heeds    uint64      // its node, if whoever has it open is told of changes of health; else 0
	share    *share

	mu      sync.Mutex // guards what follows
	entries []entry    // of a directory
	begun   bool       // entries were read from
}

// handles gives numbers to what is open, in parts by their last bits so that many readers do not wait for one lock.
type handles struct {
	last  atomic.Uint64
	parts [16]struct {
		mu   sync.RWMutex // guards open
		open map[uint64]*opened
	}
}

func (t *handles) add(h *opened) uint64 {
	fh := t.last.Add(1)
	p := &t.parts[fh%uint64(len(t.parts))]
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = make(map[uint64]*opened)
	}
	p.open[fh] = h
	return fh
}

func (t *handles) get(fh uint64) *opened {
	p := &t.parts[fh%uint64(len(t.parts))]
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.open[fh]
}

func (t *handles) drop(fh uint64) *opened {
	p := &t.parts[fh%uint64(len(t.parts))]
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.open[fh]
	delete(p.open, fh)
	return h
}
