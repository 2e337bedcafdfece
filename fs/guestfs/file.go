package guestfs

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm/guest/sftp"
)

// MaxIO bounds the bytes of one read or write of the kernel. It is also the st_blksize of guests'
// files, which programs use for their reads: the larger, the fewer round trips to the guest.
const MaxIO = 1 << 20

// opened is one open file or directory; one of both is nil.
type opened struct {
	node  uint64 // that was opened; no request for another node may name the file
	file  *file
	dir   *dir
	share Share
}

// file is an open file of a guest.
type file struct {
	node  *node
	flags uint32 // to open it again with
	turn  chan struct{}
	// Guarded by turn.
	handle  *sftp.Handle
	session *session
}

func newFile(mode uint32) sftp.Attr {
	now := time.Now()
	return sftp.Attr{
		Mode:     syscall.S_IFREG | mode,
		FileStat: sftp.FileStat{Nlink: 1, Atime: now, Mtime: now, Ctime: now},
	}
}

// in returns the file's handle in a session. After a guest did not answer in time, its session is
// another, in which the file is opened by its name again.
func (f *file) in(ctx context.Context, g *session, all *nodes) (*sftp.Handle, error) {
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if f.session == g {
		return f.handle, nil
	}
	path, err := all.path(f.node)
	if err != nil {
		return nil, err
	}
	h, err := g.client.Open(ctx, path, f.flags, 0)()
	if err != nil {
		return nil, err
	}
	f.session.opens.Add(-1)
	g.opens.Add(1)
	f.handle, f.session = h, g
	return h, nil
}

func (f *file) close() {
	f.turn <- struct{}{}
	f.handle.Close()
	f.session.opens.Add(-1)
	<-f.turn
}

func openFlags(flags uint32) uint32 {
	modes := map[uint32]uint32{
		syscall.O_RDONLY: sftp.Read, syscall.O_WRONLY: sftp.Write,
		syscall.O_RDWR: sftp.Read | sftp.Write,
	}
	mode := modes[flags&syscall.O_ACCMODE]
	if flags&syscall.O_APPEND != 0 {
		mode |= sftp.Append
	}
	return mode
}

// open opens the request's path and answers with a handle, unless answer fails. The kernel caches
// nothing of the file: the guest changes it.
func (r *request) open(kernelFlags, flags, mode uint32, out *fuse.OpenOut,
	answer func(*sftp.Handle) (*node, status)) status {
	share, err := r.mount.Count(r.caller.Uid)
	if err != nil {
		return r.mount.Overdrawn(r.caller.Uid, err)
	}
	var h *sftp.Handle
	var g *session
	code := r.ask(askWait, func(ctx context.Context, with *session) (err error) {
		g = with
		h, err = g.client.Open(ctx, r.path, flags, mode)()
		return err
	})
	var n *node
	if code.Ok() {
		if n, code = answer(h); !code.Ok() {
			h.Close()
		}
	}
	if !code.Ok() {
		share.Release()
		return code
	}
	g.opens.Add(1)
	out.Fh = r.add(&opened{node: n.id, share: share, file: &file{
		node: n, flags: openFlags(kernelFlags), turn: make(chan struct{}, 1), handle: h, session: g,
	}})
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	return fuse.OK
}

// add returns a handle for an open file or directory.
func (s *FS) add(h *opened) uint64 {
	fh := s.last.Add(1)
	s.handles.Store(fh, h)
	return fh
}

// byHandle returns an empty value for a number that is not open, or is of another node.
func (s *FS) byHandle(fh, node uint64) *opened {
	h, _ := s.handles.Load(fh)
	if o, _ := h.(*opened); o != nil && o.node == node {
		return o
	}
	return new(opened)
}

func (s *FS) Open(stop interrupt, in *fuse.OpenIn, out *fuse.OpenOut) status {
	r, code := s.pathRequest(stop, &in.InHeader)
	if !code.Ok() {
		return code
	}
	flags := openFlags(in.Flags)
	if in.Flags&syscall.O_TRUNC != 0 {
		flags |= sftp.Truncate
	}
	return r.open(in.Flags, flags, 0, out, func(*sftp.Handle) (*node, status) {
		return r.node, fuse.OK
	})
}

func (s *FS) Read(stop interrupt, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, status) {
	var data []byte
	read := func(ctx context.Context, _ *file, h *sftp.Handle) (err error) {
		data, err = h.Read(ctx, int(in.Size), int64(in.Offset))
		return err
	}
	_, code := s.askFile(stop, &in.InHeader, in.Fh, read)
	if !code.Ok() {
		return nil, code
	}
	return fuse.ReadResultData(data), fuse.OK
}

func (s *FS) Write(stop interrupt, in *fuse.WriteIn, data []byte) (uint32, status) {
	n := 0
	write := func(ctx context.Context, open *file, h *sftp.Handle) (err error) {
		most := MaxIO
		if open.flags&sftp.Append != 0 {
			most = sftp.MaxData // the guest may execute several packets in any order
		}
		for n < len(data) && err == nil {
			var written int
			part := data[n:min(len(data), n+most)]
			written, err = h.Write(ctx, part, int64(in.Offset)+int64(n))
			n += written
		}
		return err
	}
	f, code := s.askFile(stop, &in.InHeader, in.Fh, write)
	if n == 0 && !code.Ok() {
		return 0, code
	}
	s.nodes.sizeAndMode(f.node, func() { f.node.size = max(f.node.size, in.Offset+uint64(n)) })
	return uint32(n), fuse.OK // a short write reports its length in place of the error
}

// askFile calls f with the SFTP handle of an open file.
func (s *FS) askFile(stop interrupt, in *fuse.InHeader, fh uint64,
	f func(context.Context, *file, *sftp.Handle) error) (*file, status) {
	r, code := s.request(stop, in)
	if !code.Ok() {
		return nil, code
	}
	open := s.byHandle(fh, in.NodeId).file
	if open == nil {
		return nil, fuse.EBADF
	}
	return open, r.ask(dataWait, func(ctx context.Context, g *session) error {
		h, err := open.in(ctx, g, s.nodes)
		if err != nil {
			return err
		}
		return f(ctx, open, h)
	})
}

// Fsync syncs a file or a directory by its name. A file without a name does not need to survive.
func (s *FS) Fsync(stop interrupt, in *fuse.FsyncIn) status {
	r, code := s.request(stop, &in.InHeader)
	if !code.Ok() {
		return code
	}
	path, err := s.nodes.path(r.node)
	if err == errNoName {
		return fuse.OK
	}
	if err != nil {
		return s.mount.Status(err)
	}
	return r.ask(dataWait, func(ctx context.Context, g *session) error {
		sync := sftp.Change{Atime: sftp.TimeOmit, Mtime: sftp.TimeOmit, Sync: true}
		_, err := g.client.Set(ctx, path, sync)()
		return err
	})
}

func (s *FS) FsyncDir(stop interrupt, in *fuse.FsyncIn) status {
	return s.Fsync(stop, in)
}

func (s *FS) Release(_ interrupt, in *fuse.ReleaseIn) { s.release(in.Fh, in.NodeId) }

func (s *FS) ReleaseDir(in *fuse.ReleaseIn) { s.release(in.Fh, in.NodeId) }

// release closes a handle without waiting for the guest.
func (s *FS) release(fh, node uint64) {
	h := s.byHandle(fh, node)
	if !s.handles.CompareAndDelete(fh, h) {
		return
	}
	switch {
	case h.file != nil:
		go h.file.close() // waits for a request under way, which is bounded
	case h.dir != nil:
		h.dir.close()
	}
	h.share.Release()
}
