package fs

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm"
)

// maxWrite bounds the bytes of one command.
const maxWrite = 4096

// opened is one open file or directory.
type opened struct {
	node   uint64 // that was opened; no request for another node may name the file
	handle handle // nil when opened only to be written
	// nonblock is the O_NONBLOCK of the open. A later fcntl(2) does not count: Go's runtime sets
	// the flag on all that seems pollable, and a Go program that writes `start` or reads wait/
	// means to wait.
	nonblock bool
	writer   bool        // it was opened to be written
	uid, gid uint32      // of the opener; others may not write
	caller   *keptCaller // of a row that stores paths, opened to be written; else nil
	session  *session    // that the open file keeps alive
	holder   *holder     // of VMs that are removed with the open file
	watches  uint64      // its node, if the file follows health; else 0
	share    *share
	told     atomic.Bool // the audit has a line of a stream's first write

	mu      sync.Mutex // guards what follows
	entries []entry    // of a directory
	begun   bool       // entries were read from the beginning
}

func (t tree) Open(stop interrupt, in *fuse.OpenIn, out *fuse.OpenOut) status {
	r, code := t.request(stop, &in.InHeader)
	if !code.Ok() {
		return code
	}
	if r.file.kind != plain {
		return fuse.EISDIR
	}
	access := in.Flags & syscall.O_ACCMODE
	if access != syscall.O_RDONLY {
		if !r.file.writable() {
			return fuse.EACCES
		}
		t.nodes.writing(r.node)
	}
	r.nonblock = in.Flags&syscall.O_NONBLOCK != 0
	h := &opened{node: r.node, nonblock: r.nonblock, writer: access != syscall.O_RDONLY,
		uid: r.uid, gid: r.gid}
	if code := t.begin(r, h, access); !code.Ok() {
		t.release(h)
		return code
	}
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH
	switch h.handle.(type) {
	case terminal, *clone, execOutput:
		// A shell reads ahead in a seekable file and seeks back, which would lose bytes here.
		out.OpenFlags |= fuse.FOPEN_STREAM | fuse.FOPEN_NONSEEKABLE
	}
	if r.file.has(followsHealth) {
		h.watches = r.node
		t.followers.opened(r.node)
	}
	out.Fh = t.handles.add(h)
	return fuse.OK
}

// begin acquires what the open file needs. The caller releases h, also after an error.
func (t tree) begin(r *request, h *opened, access uint32) status {
	var err error
	if h.share, err = t.newShare(r.uid); err != nil {
		return t.overdrawn(r, err)
	}
	if r.file.has(storesPaths) && access != syscall.O_RDONLY {
		if h.caller, err = r.keptCaller(); err != nil {
			return t.failed(r, err)
		}
	}
	if r.file.has(holdsVMs) && access != syscall.O_RDONLY {
		h.holder = new(holder)
	}
	if r.session != nil {
		if !r.session.hold() {
			return fuse.ENOENT
		}
		h.session = r.session
	}
	if access == syscall.O_WRONLY && !r.file.has(opensWriters) {
		return fuse.OK
	}
	if r.file.open != nil {
		h.handle, err = r.file.open(&openRequest{*r, access == syscall.O_RDWR})
	} else {
		h.handle, err = t.generate(r, h, access == syscall.O_RDWR)
	}
	if err != nil {
		return t.overdrawn(r, err)
	}
	return fuse.OK
}

// generate runs the row's show once for this open. A file opened read-write stays empty if show
// fails, since it was opened to be written.
func (t tree) generate(r *request, h *opened, readWrite bool) (handle, error) {
	c, err := t.capture(r)
	switch {
	case err == nil:
		return &generated{capture: c, at: time.Now()}, h.share.Hold(int64(cap(c)))
	case readWrite:
		return new(generated), nil
	}
	return nil, err
}

// capture runs the row's show and tells the kernel the length. It ignores O_NONBLOCK, as procfs
// does: grep -r opens with it, and a guest that answers late is no reason to skip a file.
func (t tree) capture(r *request) (capture, error) {
	if r.file.has(asksGuest) {
		defer r.blocking()()
	}
	b, err := r.file.show(r)
	if err != nil {
		return nil, err
	}
	t.sendSize(r.node, b)
	return clipped(b), nil
}

// clipped returns the text in little more memory than it needs: it may be kept for long.
func clipped(b []byte) []byte {
	if cap(b)-len(b) > len(b)/4 {
		return bytes.Clone(b)
	}
	return b
}

func (t tree) Read(stop interrupt, in *fuse.ReadIn, p []byte) (fuse.ReadResult, status) {
	h := t.handles.get(in.Fh, in.NodeId)
	if h == nil || h.handle == nil {
		return nil, fuse.EBADF
	}
	if g, ok := h.handle.(*generated); ok {
		if code := t.renew(stop, in, h, g); !code.Ok() {
			return nil, code
		}
		return fuse.ReadResultData(g.part(int(in.Size), int64(in.Offset))), fuse.OK
	}
	c := t.newCall(stop, in.Caller)
	c.nonblock = h.nonblock
	defer c.blocking()()
	b, err := h.handle.read(&c, p[:in.Size], int64(in.Offset))
	if err != nil {
		r, code := t.request(stop, &in.InHeader)
		if !code.Ok() {
			return nil, code
		}
		return nil, t.unread(r, err)
	}
	return fuse.ReadResultData(b), fuse.OK
}

// renew makes a new capture for a read from the beginning of a descriptor that was read before.
// Reads by way of the page cache, as for sendfile(2), name no lock owner (FUSE_READ_LOCKOWNER of
// linux/fuse.h): the kernel may repeat those.
func (t tree) renew(stop interrupt, in *fuse.ReadIn, h *opened, g *generated) status {
	if in.Offset != 0 || in.ReadFlags&fuse.READ_LOCKOWNER == 0 || !g.again() {
		return fuse.OK
	}
	r, code := t.request(stop, &in.InHeader)
	if !code.Ok() {
		return code
	}
	r.uid, r.gid = h.uid, h.gid // the reader may be another process
	c, err := t.capture(r)
	if err != nil {
		return t.unread(r, err)
	}
	if err := g.renew(h.share, c); err != nil {
		return t.overdrawn(r, err)
	}
	return fuse.OK
}

// Write ignores the offset.
func (t tree) Write(stop interrupt, in *fuse.WriteIn, data []byte) (uint32, status) {
	r, code := t.request(stop, &in.InHeader)
	if !code.Ok() {
		return 0, code
	}
	h := t.handles.get(in.Fh, in.NodeId)
	if h == nil || !h.writer {
		return 0, fuse.EBADF
	}
	n, code := t.write(r, h, in, data)
	t.toldWrite(stop, in.Caller, r, h, data, code)
	return n, code
}

// write executes a write and returns how many bytes of it.
func (t tree) write(r *request, h *opened, in *fuse.WriteIn, data []byte) (uint32, status) {
	if err := r.checkWriter(h); err != nil {
		return 0, t.failed(r, err)
	}
	w := &writeRequest{request: *r, handle: h.handle, opener: h.caller, holder: h.holder}
	w.nonblock = h.nonblock
	w.more = in.Offset > 0 || in.Flags&syscall.O_APPEND != 0
	defer w.blocking()()
	if w.vm != nil {
		w.vm.Touch()
	}
	if w.file.write != nil {
		n, err := w.file.write(w, data)
		if err != nil && n == 0 {
			return 0, t.failed(&w.request, err)
		}
		return uint32(n), fuse.OK // a short write reports its length in place of the error
	}
	if err := w.store(data); err != nil {
		return 0, t.failed(&w.request, err)
	}
	if w.file.name != "state" { // whose command clears it itself, before it begins what may fail
		t.setError(&w.request, nil)
	}
	return uint32(len(data)), fuse.OK
}

func (w *writeRequest) store(data []byte) error {
	if len(data) > maxWrite {
		return fmt.Errorf("cannot write %d bytes to %s of %s, at most %d at once: %w",
			len(data), w.file.name, w.owner(), maxWrite, vmm.ErrTooBig)
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return fmt.Errorf("cannot write a NUL byte to %s of %s: %w",
			w.file.name, w.owner(), vmm.ErrInvalid)
	}
	return w.file.store(w, strings.TrimSpace(string(data)))
}

func (t tree) Release(_ interrupt, in *fuse.ReleaseIn) {
	if h := t.handles.drop(in.Fh, in.NodeId); h != nil {
		t.release(h)
	}
}

// release returns what an open file holds.
func (t tree) release(h *opened) {
	if h.handle != nil {
		h.handle.close()
	}
	if h.session != nil {
		h.session.release()
	}
	h.caller.release()
	h.holder.release()
	if h.watches != 0 {
		t.followers.closed(h.watches)
	}
	h.share.Release()
}

// handles numbers what is open.
type handles struct {
	last atomic.Uint64
	open sync.Map // *opened by number
}

func (t *handles) add(h *opened) uint64 {
	fh := t.last.Add(1)
	t.open.Store(fh, h)
	return fh
}

// get returns nil for a number that is not open, or is of another node.
func (t *handles) get(fh, node uint64) *opened {
	h, _ := t.open.Load(fh)
	if o, _ := h.(*opened); o != nil && o.node == node {
		return o
	}
	return nil
}

// drop is get that makes the number not open.
func (t *handles) drop(fh, node uint64) *opened {
	if h := t.get(fh, node); h != nil && t.open.CompareAndDelete(fh, h) {
		return h
	}
	return nil
}
