package fs

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm"
)

// brief is what a file opened O_NONBLOCK waits for what may be there at once.
const brief = time.Millisecond

// request is one request of the kernel, taken apart.
type request struct {
	server   *Server
	ctx      context.Context
	file     *file
	vm       *vmm.VM     // nil above vms/NAME
	image    uint64      // number of the image, 0 above images/NAME
	session  *session    // of exec/N and what is below it
	handle   handle      // of a write, what the file was opened to read with
	opener   *keptCaller // of a write to a row of paths
	answer   []byte      // of a read, room for what it asks for
	param    uint16
	node     uint64
	uid, gid uint32
	pid      uint32
	nonblock bool
	more     bool // a write that goes on behind an earlier one of its open, or appends
}

func (r *request) snap() *vmm.Snapshot { return r.vm.Snapshot() }

// raw implements fuse.RawFileSystem; what it does not define is refused with ENOSYS, which
// the kernel takes as "never ask again" and where that is silence, refusals are below.
type raw struct {
	fuse.RawFileSystem
	*Server
}

func (s raw) String() string    { return "banger" }
func (s raw) Init(*fuse.Server) {}
func (s raw) OnUnmount()        {}

// request finds the row and the VM of a node. ENOENT for what has been removed.
func (s raw) request(cancel <-chan struct{}, h *fuse.InHeader) (*request, fuse.Status) {
	r := &request{
		server: s.Server, ctx: &fuse.Context{Caller: h.Caller, Cancel: cancel},
		node: h.NodeId, uid: h.Uid, gid: h.Gid, pid: h.Pid,
	}
	if h.NodeId == rootID {
		r.file = rows[0]
		return r, fuse.OK
	}
	serial, row, param := splitID(h.NodeId)
	if int(row) >= len(rows) {
		return nil, fuse.ENOENT
	}
	r.file, r.param = rows[row], param
	switch {
	case serial&imageBit != 0:
		r.image = serial &^ imageBit
		if _, ok := s.o.Images.Info(r.image); !ok {
			return nil, fuse.ENOENT
		}
		return r, fuse.OK
	case serial&sessionBit != 0:
		if r.session = s.sessions.get(serial); r.session == nil {
			return nil, fuse.ENOENT
		}
		serial = r.session.vm.Serial()
	}
	if serial != 0 {
		if r.vm = s.o.Manager.BySerial(serial); r.vm == nil {
			return nil, fuse.ENOENT
		}
	}
	return r, fuse.OK
}

// detached does what waits for the disk. When the request ends first, which the caller makes blocking, its caller is free at once
// and what was begun goes on: a disk may answer late or never. f uses nothing of the kernel's request.
func (r *request) detached(f func(context.Context) error) error {
	done := make(chan error, 1)
	r.server.begun.Add(1)
	go func() {
		defer r.server.begun.Done()
		done <- f(context.WithoutCancel(r.ctx))
	}()
	select {
	case err := <-done:
		return err
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
}

// patience bounds the wait of a request that may not block; the caller calls the function.
func (r *request) patience() (context.Context, context.CancelFunc) {
	if r.nonblock {
		return context.WithTimeout(r.ctx, brief)
	}
	return r.ctx, func() {}
}

// again makes the end of such a wait EAGAIN.
func (r *request) again(err error) error {
	if r.nonblock && errors.Is(err, context.DeadlineExceeded) {
		return errAgain
	}
	return err
}

// child is the request's node for a name in it.
func (r *request) child(name string) (*file, uint64, *vmm.VM, bool) {
	f := r.file
	if f.find != nil {
		e, ok := f.find(r, name)
		if !ok {
			return nil, 0, nil, false
		}
		v := r.vm
		if e.serial != 0 && e.serial&imageBit == 0 && v == nil {
			if v = r.server.o.Manager.BySerial(e.serial); v == nil {
				return nil, 0, nil, false
			}
		}
		return rows[e.row], nodeID(e.serial, e.row, e.param), v, true
	}
	for i := range f.files {
		if c := &f.files[i]; c.name == name {
			return c, nodeID(r.serial(), c.row, r.below()), r.vm, true
		}
	}
	return nil, 0, nil, false
}

func (r *request) serial() uint64 {
	switch {
	case r.session != nil:
		return r.session.serial
	case r.vm != nil:
		return r.vm.Serial()
	case r.image != 0:
		return imageBit | r.image
	}
	return 0
}

// below is the parameter that a directory hands to what is in it.
func (r *request) below() uint16 {
	if r.node == rootID {
		return 0
	}
	return r.param
}

func (s raw) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	r, code := s.request(cancel, h)
	if !code.Ok() {
		return code
	}
	f, node, v, ok := r.child(name)
	if !ok {
		return fuse.ENOENT
	}
	if f.writable() {
		aim, aimed := s.nodes.aimed(node)
		if aimed && h.Pid == s.nudgerTID.Load() {
			s.nodes.add(node, aim)
			node = aim
		} else {
			node = s.nodes.fresh(node)
		}
	}
	r.file, r.node, r.vm = f, node, v
	switch serial, _, _ := splitID(node); {
	case serial&imageBit != 0:
		r.image = serial &^ imageBit
	case serial&sessionBit != 0 && r.session == nil:
		if r.session = s.sessions.get(serial); r.session == nil {
			return fuse.ENOENT // it has just ended
		}
	}
	s.entry(r, out)
	return fuse.OK
}

func (s raw) entry(r *request, out *fuse.EntryOut) {
	_, _, r.param = splitID(r.node)
	out.NodeId = r.node
	s.attr(r, &out.Attr)
	out.SetAttrTimeout(attrValid(r.file))
	switch {
	case r.file.writable():
		out.SetEntryTimeout(notKept) // the next look-up gives another node
		return
	case r.file.watch:
		s.nodes.add(r.node, r.node)
	}
	if r.file.heeds {
		s.held.named(r.node)
	}
	out.SetEntryTimeout(attrSeconds * time.Second)
}

func (s raw) Forget(node, lookups uint64) {
	gone, last := s.nodes.forget(node, lookups)
	if !gone {
		return
	}
	s.sizes.forget(node)
	s.eventSizes.forget(node)
	s.texts.Delete(node)
	if last {
		s.sizes.forget(plainID(node))
	}
	if _, row, _ := splitID(node); rows[row].heeds {
		s.held.forget(node)
	}
}

// Only rmdir destroys and only mkdir makes; a node tree's defaults would succeed in silence.

func (s raw) Unlink(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return fuse.EPERM }
func (s raw) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}
func (s raw) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return fuse.EPERM
}
func (s raw) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status { return fuse.EPERM }
func (s raw) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}
func (s raw) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}
func (s raw) Fallocate(<-chan struct{}, *fuse.FallocateIn) fuse.Status {
	return fuse.Status(syscall.EOPNOTSUPP)
}

func (s raw) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.OK }

func (s raw) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.NameLen = 4096, 255
	return fuse.OK
}
