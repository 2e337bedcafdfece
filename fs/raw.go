package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm"
)

const (
	maxWrite    = 4096             // bytes of one command
	brief       = time.Millisecond // what a file opened O_NONBLOCK waits for what may be there at once
	firstSize   = 4096             // st_size of a generated file before its first open, as in sysfs
	attrSeconds = 1
	maxRefusals = 1024 // uids whose last refusal is kept
)

// request is one request of the kernel, taken apart.
type request struct {
	server   *Server
	ctx      context.Context
	file     *file
	vm       *vmm.VM  // nil above vms/NAME
	image    uint64   // number of the image, 0 above images/NAME
	session  *session // of exec/N and what is below it
	handle   handle   // of a write, what the file was opened to read with
	answer   []byte   // of a read, room for what it asks for
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

// attr fills in a node's attributes; it collects nothing.
func (s raw) attr(r *request, out *fuse.Attr) {
	f := r.file
	out.Ino = plainID(r.node)
	out.Mode = f.fileType() | f.mode
	out.Nlink = 1
	out.Blksize = 4096
	out.Owner = fuse.Owner{Uid: s.uid, Gid: s.gid}
	changed := s.started
	created := s.started
	if r.vm != nil {
		snap := r.snap()
		out.Owner = fuse.Owner{Uid: snap.Owner.UID, Gid: snap.Owner.GID}
		switch f {
		case vmRow:
			out.Mode = syscall.S_IFDIR | snap.Owner.Mode&0o7777
		case fsRow:
			out.Mode = syscall.S_IFDIR | fsAttr(snap.Owner)
		}
		changed, created = snap.Created, snap.Created
		if t, ok := snap.Changed.Of(strings.TrimSuffix(f.name, ".json")); ok {
			changed = t
		}
		if f == snapshotRow {
			if d := r.snapshot(); d != nil {
				changed, created = d.Created, d.Created
			}
		}
		if r.session != nil {
			out.Owner = fuse.Owner{Uid: r.session.uid, Gid: r.session.gid}
			changed, created = r.session.made, r.session.made
		}
	} else if r.image != 0 {
		if i, ok := s.o.Images.Info(r.image); ok {
			out.Owner = fuse.Owner{Uid: i.Owner.UID, Gid: i.Owner.GID}
			changed, created = i.Changed, i.Created
		}
	} else if f == vmsRow || f == imagesRow {
		out.Mode = syscall.S_IFDIR | s.vmsMode
		if f == vmsRow {
			changed = s.o.Manager.ListChanged()
		}
	}
	if r.vm == nil && s.o.Group >= 0 && (f == vmsRow || f == imagesRow || f.writable()) {
		out.Gid = uint32(s.o.Group)
	}
	if f.size != nil {
		size, grown := f.size(r)
		out.Size = uint64(size)
		if !grown.IsZero() {
			changed = grown
		}
	}
	out.SetTimes(&changed, &changed, &created)
	if f.kind != plain {
		return
	}
	switch {
	case f.size != nil:
	case f.open != nil:
		out.Size = 0
	default:
		size := s.sizes.told(plainID(r.node))
		s.sizes.tell(r.node, size) // what the kernel knows of this node from now on
		out.Size = uint64(size)
	}
	out.Blocks = (out.Size + 511) / 512
}

// notKept is a timeout for what the kernel may not keep. A nanosecond would be a tick of its clock, some milliseconds.
const notKept = 0

// attrValid is how long the kernel may keep attributes: not at all where the size is that of a growing file, or of what
// others write, or where there are too many nodes to tell the kernel of a new owner.
func attrValid(f *file) time.Duration {
	if f.size != nil || f.writable() || f == portRow {
		return notKept
	}
	return attrSeconds * time.Second
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

func (s raw) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	r, code := s.request(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	s.attr(r, &out.Attr)
	out.SetTimeout(attrValid(r.file))
	return fuse.OK
}

// SetAttr takes O_TRUNC's size, the owner and mode of a VM's directory, and times.
func (s raw) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	r, code := s.request(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	if in.Valid&fuse.FATTR_SIZE != 0 && !r.file.writable() {
		return fuse.EACCES
	}
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID|fuse.FATTR_MODE) != 0 {
		if err := s.chown(r, in); err != nil {
			s.fail(r, err)
			return errno(err)
		}
		s.chowned(r.vm, vmRow)
	}
	// The daemon's own changes of times are for inotify's watchers; anybody else's are a use of the VM.
	if in.Valid&(fuse.FATTR_MTIME|fuse.FATTR_ATIME) != 0 && r.vm != nil && r.pid != s.nudgerTID.Load() {
		if r.file.name == "touched" && in.Valid&fuse.FATTR_MTIME != 0 && in.Valid&fuse.FATTR_MTIME_NOW == 0 {
			r.vm.SetTouched(minTime(time.Unix(int64(in.Mtime), int64(in.Mtimensec)), time.Now()))
		} else {
			r.vm.Touch()
		}
	}
	s.attr(r, &out.Attr)
	out.SetTimeout(attrValid(r.file))
	return fuse.OK
}

// chown changes a VM's owner, group and mode; the kernel's default_permissions has asked who may, we ask again.
func (s raw) chown(r *request, in *fuse.SetAttrIn) error {
	if r.file != vmRow {
		return fmt.Errorf("owner and mode are those of the VM's directory: %w", vmm.ErrNotPermitted)
	}
	o := r.snap().Owner
	root := r.uid == 0 || r.uid == s.uid
	if !root && (r.uid != o.UID || in.Valid&fuse.FATTR_UID != 0 && in.Uid != o.UID) {
		return fmt.Errorf("cannot change whose %s is: %w", r.snap().Name, vmm.ErrNotPermitted)
	}
	if in.Valid&fuse.FATTR_UID != 0 {
		o.UID = in.Uid
	}
	if in.Valid&fuse.FATTR_GID != 0 {
		o.GID = in.Gid
	}
	if in.Valid&fuse.FATTR_MODE != 0 {
		o.Mode = in.Mode & 0o7777
	}
	defer r.blocking()()
	return r.detached(func(ctx context.Context) error { return r.vm.Chown(ctx, o) })
}

// chowned makes the kernel ask again whose the files below a VM's directory are, by which it decides who may open them.
func (s raw) chowned(v *vmm.VM, dir *file) {
	for i := range dir.files {
		f := &dir.files[i]
		if attrValid(f) != notKept {
			s.fuse.InodeNotify(nodeID(v.Serial(), f.row, 0), -1, 0) // unless the kernel does not know it
		}
		s.chowned(v, f)
	}
}

func (s raw) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	r, code := s.request(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	dir := r.file
	if dir.mkdir == nil {
		return s.refused(r.uid, fmt.Errorf("cannot make the directory %s here, only in vms, images and snapshots: %w", name, vmm.ErrNotPermitted))
	}
	owner := vmm.Owner{UID: in.Uid, GID: in.Gid, Mode: in.Mode & 0o777}
	if code := s.change(r, func() error { return dir.mkdir(r, strings.Clone(name), owner) }); !code.Ok() {
		return code
	}
	if r.file == dir { // removed already
		return fuse.ENOENT
	}
	s.entry(r, out)
	return fuse.OK
}

func (s raw) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	r, code := s.request(cancel, h)
	if !code.Ok() {
		return code
	}
	if r.file.rmdir == nil {
		return s.refused(r.uid, fmt.Errorf("cannot remove the directory %s, only those in vms, images and snapshots: %w", name, vmm.ErrNotPermitted))
	}
	return s.change(r, func() error { return r.file.rmdir(r, strings.Clone(name)) })
}

// change makes or removes a directory. In a VM's directory that is a use of it, and its success clears the VM's error.
func (s raw) change(r *request, do func() error) fuse.Status {
	defer r.blocking()()
	v := r.vm
	if v != nil {
		v.Touch()
	}
	if err := do(); err != nil {
		return s.refusedVM(r.uid, r.vm, err)
	}
	if v != nil {
		v.Fail(nil)
	}
	return fuse.OK
}

func (s raw) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	const exchange = 2 // RENAME_EXCHANGE of renameat2(2)
	r, code := s.request(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	if r.file != vmsRow {
		return s.refused(r.uid, fmt.Errorf("cannot move %s, only what is in vms: %w", from, vmm.ErrNotPermitted))
	}
	defer r.blocking()()
	from, to = strings.Clone(from), strings.Clone(to)
	v := s.o.Manager.VM(from)
	if in.Newdir != r.node {
		return s.refusedVM(r.uid, v, fmt.Errorf("cannot move %s out of vms, only give it another name there: %w", from, vmm.ErrNotPermitted))
	}
	if in.Flags&exchange != 0 {
		return s.refusedVM(r.uid, v, fmt.Errorf("cannot exchange %s with %s: %w", from, to, vmm.ErrInvalid))
	}
	if err := r.detached(func(ctx context.Context) error { return s.o.Manager.Rename(ctx, from, to) }); err != nil {
		return s.refusedVM(r.uid, v, err)
	}
	return fuse.OK
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
	h := &opened{nonblock: r.nonblock}
	if r.session != nil {
		if !r.session.hold() {
			return fuse.ENOENT
		}
		h.session = r.session
	}
	if access != syscall.O_WRONLY || r.file.takes {
		var err error
		if h.handle, err = s.capture(r, access == syscall.O_RDWR); err != nil {
			return s.unread(r, err) // rows of sessions do not fail
		}
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

// text runs the row's show, and tells the kernel its length.
func (s raw) text(r *request) (capture, error) {
	if r.file.asks {
		defer r.blocking()()
		ctx, cancel := r.patience()
		defer cancel()
		r.ctx = ctx
	}
	b, err := r.file.show(r)
	if err != nil {
		return nil, r.again(err)
	}
	s.tellSize(r.node, b)
	return b, nil
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
	r.nonblock = h.nonblock
	c, err := s.text(r)
	if err != nil {
		return s.unread(r, err)
	}
	g.renew(c)
	return fuse.OK
}

// unread gives the errno of a read that failed, and logs what no other errno explains.
func (s raw) unread(r *request, err error) fuse.Status {
	name := ""
	code := errno(err)
	if r.vm != nil {
		name = r.snap().Name
	}
	s.o.Log.Log(r.ctx, level(code, slog.LevelDebug), "cannot read", "vm", name, "file", r.file.name, "err", err)
	return code
}

// level is that of the log's line about a failure: the usual one, but for what only the log explains.
func level(code fuse.Status, usual slog.Level) slog.Level {
	if code == fuse.EIO {
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
	if h := s.handles.get(in.Fh); h != nil {
		r.nonblock, r.handle = h.nonblock, h.handle
	}
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

// whose is the name of what a file belongs to.
func (r *request) whose() string {
	switch {
	case r.vm != nil:
		return r.snap().Name
	case r.image != 0:
		i, _ := r.server.o.Images.Info(r.image)
		return "image " + i.Name
	}
	return "the host"
}

// fail keeps the sentence of a refused command in the `error` of the VM or the image.
func (s raw) fail(r *request, err error) {
	code := errno(err)
	switch code {
	case fuse.Status(syscall.EINTR), fuse.EAGAIN, fuse.Status(syscall.EPIPE):
		return // the command goes on, or is to be given again; or takes no more input, as it may
	}
	s.o.Log.Log(r.ctx, level(code, slog.LevelInfo), "refused", "vm", r.whose(), "file", r.file.name, "uid", r.uid, "err", err)
	s.failed(r, err)
}

// failed keeps the sentence, nil for none, where who wrote looks for it.
func (s *Server) failed(r *request, err error) {
	switch {
	case r.vm != nil:
		r.vm.Fail(err)
	case r.image != 0:
		s.o.Images.Refuse(r.image, err)
	case err != nil:
		s.keepRefusal(r.uid, err)
	}
}

// refused keeps the sentence for who was refused, of the most recent uids, and gives the errno.
func (s *Server) refused(uid uint32, err error) fuse.Status {
	code := errno(err)
	if code == fuse.Status(syscall.EINTR) {
		return code // what was begun goes on
	}
	s.o.Log.Log(s.ctx, level(code, slog.LevelInfo), "refused", "uid", uid, "err", err)
	s.keepRefusal(uid, err)
	return code
}

func (s *Server) keepRefusal(uid uint32, err error) {
	s.refusalsMu.Lock()
	defer s.refusalsMu.Unlock()
	if len(s.refusals) >= maxRefusals {
		clear(s.refusals)
	}
	s.refusals[uid] = fmt.Sprint(err)
}

// refusedVM is refused for what was asked of a VM, whose `error` says it too; v is nil if there is none of that name.
func (s *Server) refusedVM(uid uint32, v *vmm.VM, err error) fuse.Status {
	code := s.refused(uid, err)
	if v != nil && code != fuse.Status(syscall.EINTR) {
		v.Fail(err)
	}
	return code
}

func (s raw) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }
func (s raw) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

func (s raw) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	h := s.handles.drop(in.Fh)
	if h == nil {
		return
	}
	if h.handle != nil {
		h.handle.close()
	}
	if h.session != nil {
		h.session.release()
	}
	if h.heeds != 0 {
		s.held.closed(h.heeds)
	}
}

func (s raw) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	r, code := s.request(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	out.Fh = s.handles.add(&opened{entries: s.entries(r)})
	return fuse.OK
}

// rewound gives the names for a read of a directory: those of its open or, since who reads from the beginning
// again wants what is there now (rewinddir(3)), of the last such read.
func (s raw) rewound(cancel <-chan struct{}, in *fuse.ReadIn, h *opened) []entry {
	h.mu.Lock()
	defer h.mu.Unlock()
	if in.Offset == 0 && h.begun {
		h.entries = nil
		if r, code := s.request(cancel, &in.InHeader); code.Ok() { // not one of a VM that was removed
			h.entries = s.entries(r)
		}
	}
	h.begun = true
	return h.entries
}

// entries are the names of a directory as one reader of it sees them.
func (s raw) entries(r *request) []entry {
	switch r.file.kind {
	case dynamic:
		return r.file.list(r)
	case dir:
		var list []entry
		for i := range r.file.files {
			if &r.file.files[i] == fsRow && !fsListed(r.snap()) {
				continue
			}
			list = append(list, entry{name: r.file.files[i].name, serial: r.serial(), row: r.file.files[i].row, param: r.below()})
		}
		return list
	}
	return nil
}

func (s raw) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	s.readDir(cancel, in, func(e fuse.DirEntry) bool { return out.AddDirEntry(e) })
	return fuse.OK
}

func (s raw) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	s.readDir(cancel, in, func(e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		h := in.InHeader
		h.NodeId = e.Ino
		if e.Name == "." || e.Name == ".." || !lasting(e.Ino) {
			return true
		}
		// A VM that went or was renamed since OpenDir stays a name without a node, which the kernel looks up.
		if r, code := s.request(cancel, &h); code.Ok() && (r.file != vmRow || r.snap().Name == e.Name) {
			s.entry(r, entry)
		}
		return true
	})
	return fuse.OK
}

// lasting reports whether the kernel may keep what it is told of a node. Of others, which it would ask for again, a listing gives the name only.
func lasting(node uint64) bool {
	_, row, _ := splitID(node)
	return rows[row].size == nil && !rows[row].writable()
}

// readDir adds entries from the offset on until add refuses one. Offsets count from 1, `.` and `..` being the first two.
func (s raw) readDir(cancel <-chan struct{}, in *fuse.ReadIn, add func(fuse.DirEntry) bool) {
	h := s.handles.get(in.Fh)
	if h == nil {
		return
	}
	entries := s.rewound(cancel, in, h)
	for i := in.Offset; i < uint64(len(entries))+2; i++ {
		e := fuse.DirEntry{Name: [2]string{".", ".."}[i&1], Mode: syscall.S_IFDIR, Ino: in.NodeId, Off: i + 1}
		if i >= 2 {
			named := entries[i-2]
			e.Name, e.Mode = named.name, rows[named.row].fileType()
			e.Ino = nodeID(named.serial, named.row, named.param)
		}
		if !add(e) {
			return
		}
	}
}

func (s raw) ReleaseDir(in *fuse.ReleaseIn) { s.handles.drop(in.Fh) }

func (s raw) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

func (s raw) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.OK }

func (s raw) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.NameLen = 4096, 255
	return fuse.OK
}

// opened is one open file or directory.
type opened struct {
	handle handle // nil when opened only to be written
	// As the open said: what fcntl(2) sets later is left aside, because Go's runtime sets it on whatever seems pollable, and a
	// Go program that writes `start` or reads wait/ means to wait.
	nonblock bool
	session  *session // that it keeps alive
	heeds    uint64   // its node, if whoever has it open is told of changes of health; else 0
	guest    *guestFile
	guestDir *guestDir

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

// sizes are the lengths last captured of the files that the kernel knows, where they are not firstSize; of files with several nodes
// also the length that the kernel was last told of each node.
type sizes struct {
	mu   sync.RWMutex // guards size
	size map[uint64]int64
}

func (t *sizes) told(node uint64) int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n, ok := t.size[node]; ok {
		return n
	}
	return firstSize
}

// tell keeps a new length and gives the one before.
func (t *sizes) tell(node uint64, size int64) int64 {
	old := t.told(node)
	if old != size {
		t.mu.Lock()
		t.size[node] = size
		t.mu.Unlock()
	}
	return old
}

func (t *sizes) forget(node uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.size, node)
}

// tellSize makes the kernel believe the capture's length, which sendfile(2) and
// fstat(2) go by: a longer one by storing its last byte in the page cache (the
// only thing that raises the size of a file being read), and in any case by
// making it ask again. No lock is held over either.
func (s raw) tellSize(node uint64, b []byte) {
	size := int64(len(b))
	old := s.sizes.tell(node, size)
	if file := plainID(node); file != node {
		s.sizes.tell(file, size)
	}
	if size == old {
		return
	}
	if size > old {
		s.fuse.InodeNotifyStoreCache(node, size-1, b[size-1:])
	}
	s.fuse.InodeNotify(node, -1, 0)
}

// nudge tells inotify's watchers that a file has changed: only a change made
// through the mount does (FUSE has no notification that reaches them).
func (s *Server) nudge(e vmm.Event) {
	names := map[string][]string{
		vmm.EventState:  {"state", "health", "events"},
		vmm.EventHealth: {"health", "events"},
	}[e.What]
	if names == nil {
		names = []string{"events"}
	}
	if e.What == vmm.EventImage {
		names = nil
		for i := range imageRow.files {
			if f := &imageRow.files[i]; f.watch {
				s.nudgeImage(f, e.VM)
			}
		}
	}
	for _, name := range names {
		if f := vmFile(name); f != nil {
			s.nudgeFile(nodeID(e.Serial, f.row, 0), filepath.Join("vms", e.VM, name))
		}
	}
	for _, f := range rows[0].files {
		if f.watch {
			s.nudgeFile(nodeID(0, f.row, 0), f.name)
		}
	}
}

// nudgeImage does it for a file of the image that has that name now.
func (s *Server) nudgeImage(f *file, name string) {
	for _, i := range s.o.Images.Infos() {
		if i.Name == name {
			s.nudgeFile(nodeID(imageBit|i.Number, f.row, 0), filepath.Join("images", name, f.name))
		}
	}
}

func vmFile(name string) *file {
	for i := range vmRow.files {
		if vmRow.files[i].name == name {
			return &vmRow.files[i]
		}
	}
	return nil
}
