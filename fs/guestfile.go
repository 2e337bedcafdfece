package fs

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm"
	"banger/vmm/guest/sftp"
)

// maxIO is how many bytes the kernel reads or writes at once at most, and the st_blksize of guests' files, which programs go by: the more at
// once, the less the way to the guest and back counts.
const maxIO = 1 << 20

// open opens what has the path, in the session that it gives.
func (s guestFS) open(r *request, path string, flags, mode uint32) (h *sftp.Handle, session *guestSession, code fuse.Status) {
	code = s.ask(r, guestWait, func(ctx context.Context, g *guestSession) (err error) {
		session = g
		h, err = g.client.Open(ctx, path, flags, mode)()
		return err
	})
	return h, session, code
}

// guestFile is an open file of a guest.
type guestFile struct {
	node  *guestNode
	flags uint32 // to open it again with
	turn  chan struct{}
	// Of who has turn.
	handle  *sftp.Handle
	session *guestSession
}

// on gives the file's handle in a session: after a guest did not answer in time, the file is opened anew by its name.
func (f *guestFile) on(ctx context.Context, g *guestSession, nodes *guestNodes) (*sftp.Handle, error) {
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if f.session == g {
		return f.handle, nil
	}
	path, err := nodes.path(f.node)
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

func (f *guestFile) close() {
	f.turn <- struct{}{}
	f.handle.Close()
	f.session.opens.Add(-1)
	<-f.turn
}

func openFlags(flags uint32) uint32 {
	out := map[uint32]uint32{syscall.O_RDONLY: sftp.Read, syscall.O_WRONLY: sftp.Write, syscall.O_RDWR: sftp.Read | sftp.Write}[flags&syscall.O_ACCMODE]
	if flags&syscall.O_APPEND != 0 {
		out |= sftp.Append
	}
	return out
}

// opened is the answer to an open: nothing is kept by the kernel, the guest changes its files.
func (s guestFS) opened(o *opened, n *guestNode, flags uint32, h *sftp.Handle, g *guestSession, out *fuse.OpenOut) {
	g.opens.Add(1)
	o.guest = &guestFile{node: n, flags: openFlags(flags), turn: make(chan struct{}, 1), handle: h, session: g}
	out.Fh = s.handles.add(o)
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH | fuse.FOPEN_PARALLEL_DIRECT_WRITES
}

func (s guestFS) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) (code fuse.Status) {
	r, dir, path, code := s.in(cancel, &in.InHeader, name)
	if !code.Ok() {
		return code
	}
	o := new(opened)
	defer func() {
		if !code.Ok() {
			o.letAllowance()
		}
	}()
	var err error
	if o.allowance, err = s.allowances.file(r); err != nil {
		return s.overdrawn(r, err)
	}
	flags := openFlags(in.Flags) | sftp.Create
	if in.Flags&syscall.O_EXCL != 0 {
		flags |= sftp.Exclusive
	}
	if in.Flags&syscall.O_TRUNC != 0 && in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		flags |= sftp.Truncate
	}
	s.guestNodes.changes(dir)
	h, session, code := s.open(r, path, flags, in.Mode&0o7777)
	if !code.Ok() {
		return code
	}
	s.guestNodes.removed(dir, name)
	a := h.File
	if now := time.Now(); !h.HasAttrs {
		// What a new file is need not be asked for; the kernel asks when somebody wants to know.
		a = sftp.Attr{Mode: syscall.S_IFREG | in.Mode&0o7777, FileStat: sftp.FileStat{Nlink: 1, Atime: now, Mtime: now, Ctime: now}}
	}
	if a.Mode&syscall.S_IFMT != syscall.S_IFREG {
		h.Close()
		return fuse.EIO
	}
	if code := s.entry(r, dir, name, a, &out.EntryOut); !code.Ok() {
		h.Close()
		return code
	}
	if h.HasAttrs && h.Dir.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		// To permit the next file to be made in it the kernel asks what the directory is: each change of it makes it forget that.
		s.guestNodes.heard(dir, h.Dir, guestValid)
	}
	if !h.HasAttrs {
		out.SetAttrTimeout(notKept)
	}
	s.opened(o, s.guestNodes.get(out.NodeId), in.Flags, h, session, &out.OpenOut)
	return fuse.OK
}

func (s guestFS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	r, n, path, code := s.at(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	flags := openFlags(in.Flags)
	if in.Flags&syscall.O_TRUNC != 0 {
		flags |= sftp.Truncate
	}
	o := new(opened)
	var err error
	if o.allowance, err = s.allowances.file(r); err != nil {
		return s.overdrawn(r, err)
	}
	h, session, code := s.open(r, path, flags, 0)
	if !code.Ok() {
		o.letAllowance()
		return code
	}
	s.opened(o, n, in.Flags, h, session, out)
	return fuse.OK
}

func (s guestFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	r, f, code := s.file(cancel, &in.InHeader, in.Fh)
	if !code.Ok() {
		return nil, code
	}
	var data []byte
	code = s.ask(r, dataWait, func(ctx context.Context, g *guestSession) error {
		h, err := f.on(ctx, g, s.guestNodes)
		if err != nil {
			return err
		}
		data, err = h.Read(ctx, int(in.Size), int64(in.Offset))
		return err
	})
	if !code.Ok() {
		return nil, code
	}
	return fuse.ReadResultData(data), fuse.OK
}

func (s guestFS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	r, f, code := s.file(cancel, &in.InHeader, in.Fh)
	if !code.Ok() {
		return 0, code
	}
	n := 0
	code = s.ask(r, dataWait, func(ctx context.Context, g *guestSession) error {
		h, err := f.on(ctx, g, s.guestNodes)
		if err != nil {
			return err
		}
		at := maxIO
		if f.flags&sftp.Append != 0 {
			at = sftp.MaxData // the guest may take several in any order
		}
		for n < len(data) && err == nil {
			var written int
			written, err = h.Write(ctx, data[n:min(len(data), n+at)], int64(in.Offset)+int64(n))
			n += written
		}
		return err
	})
	if n == 0 && !code.Ok() {
		return 0, code
	}
	s.guestNodes.grown(f.node, in.Offset+uint64(n))
	return uint32(n), fuse.OK // a short write says how far it came
}

func (s guestFS) file(cancel <-chan struct{}, in *fuse.InHeader, fh uint64) (*request, *guestFile, fuse.Status) {
	r, _, code := s.request(cancel, in)
	if !code.Ok() {
		return nil, nil, code
	}
	h := s.handles.get(fh)
	if h == nil || h.guest == nil {
		return nil, nil, fuse.EBADF
	}
	return r, h.guest, fuse.OK
}

// Fsync makes what was written to a file or a directory last, by its name; what has none any more need not.
func (s guestFS) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	r, n, code := s.request(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	path, err := s.guestNodes.path(n)
	if errors.Is(err, vmm.ErrNotFound) {
		return fuse.OK
	}
	if err != nil {
		return errno(err)
	}
	return s.ask(r, dataWait, func(ctx context.Context, g *guestSession) error {
		_, err := g.client.Set(ctx, path, sftp.Change{Atime: sftp.TimeOmit, Mtime: sftp.TimeOmit, Sync: true})()
		return err
	})
}

// Release closes what was open. The guest is not waited for.
func (s guestFS) Release(fh uint64) {
	if h := s.handles.drop(fh); h != nil {
		switch {
		case h.guest != nil:
			go h.guest.close() // waits for a request that is under way, which is bounded
		case h.guestDir != nil:
			h.guestDir.close()
		}
		h.letAllowance()
	}
}
