// Package guestfs serves what is below vms/NAME/fs: the files of guests, over SFTP to their agents.
//
// A user who may enter that directory uses the files with the rights of the guest's root. The
// kernel checks the modes and owners that it sees. For a VM of root's they are the guest's own. For
// another user's VM that user owns all files, as in a user namespace with a single user.
//
// The package keeps one session with the agent for each run of a VM (session.go), in a goroutine of
// its own, and one node for each file that the kernel knows (nodes.go). It never resolves a path on
// the host.
package guestfs

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm"
	"banger/vmm/guest/sftp"
)

// Mount is what the files of guests need of the tree that they are part of.
type Mount interface {
	// VM returns the VM with a serial, or nil after its removal.
	VM(serial uint64) *vmm.VM
	// Root returns the serial of the VM whose directory `fs` a node is; false for other nodes.
	Root(node uint64) (serial uint64, ok bool)
	// Begin returns a context that ends with the caller's system call or with the mount. The caller
	// of Begin calls end.
	Begin(stop interrupt, c fuse.Caller) (ctx context.Context, end func())
	// Count counts one more open file for a user, until its Release.
	Count(uid uint32) (Share, error)
	// Overdrawn returns the status of an open that Count or Hold refused.
	Overdrawn(uid uint32, err error) status
	// Failed logs an error with a file of the VM's guest and returns its status.
	Failed(v *vmm.VM, err error) status
	// Status returns the status of an error without logging it.
	Status(err error) status
}

// Share is the part of a user's allowance that one open file uses.
type Share interface {
	Hold(bytes int64) error // in place of what it held before
	Release()
}

// Short names for the signatures of fuse.RawFileSystem.
type (
	status    = fuse.Status
	interrupt = <-chan struct{} // closed when the caller of a request was interrupted
)

// valid is how long the kernel may keep names and attributes: a guest changes its files
// unannounced.
const valid = time.Second

// FS implements fuse.RawFileSystem for the files of all guests, and for what concerns the content
// of the directories that show their roots.
type FS struct {
	fuse.RawFileSystem // refuses the rest
	mount              Mount
	showLinks          atomic.Bool
	nodes              *nodes
	sessions           sessions
	last               atomic.Uint64 // handle in use
	handles            sync.Map      // *opened by handle
}

// New returns the files of guests. Their sessions end with ctx, and work counts the goroutines that
// serve them.
func New(ctx context.Context, work *sync.WaitGroup, m Mount) *FS {
	root := func(node uint64) (serial uint64, ok bool) {
		serial, ok = m.Root(node)
		return serial, ok && m.VM(serial) != nil
	}
	return &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), mount: m, nodes: newNodes(maxNodes, root),
		sessions: sessions{
			ctx: ctx, work: work, now: time.Now, after: time.After, open: make(map[uint64]*session),
		},
	}
}

// ShowLinks allows reading symbolic links. The mount must keep the kernel from following them
// (MS_NOSYMFOLLOW of mount(2)): a guest's links would lead to the host's files.
func (s *FS) ShowLinks() { s.showLinks.Store(true) }

// Close keeps new sessions from beginning. Those that exist end with New's ctx.
func (s *FS) Close() { s.sessions.close() }

// request is one request of the kernel for a file of a guest.
type request struct {
	*FS
	stop   interrupt
	caller fuse.Caller
	vm     *vmm.VM
	node   *node
	path   string // of the node, or of a name in it
}

// request finds the node and the VM. ENOENT for what has been removed.
func (s *FS) request(stop interrupt, h *fuse.InHeader) (*request, status) {
	n := s.nodes.get(h.NodeId)
	if n == nil {
		return nil, fuse.ENOENT
	}
	v := s.mount.VM(n.serial)
	if v == nil {
		return nil, fuse.ENOENT
	}
	return &request{FS: s, stop: stop, caller: h.Caller, vm: v, node: n}, fuse.OK
}

// pathRequest is request with the path of the node.
func (s *FS) pathRequest(stop interrupt, h *fuse.InHeader) (*request, status) {
	r, code := s.request(stop, h)
	if !code.Ok() {
		return nil, code
	}
	var err error
	r.path, err = s.nodes.path(r.node)
	return r, s.mount.Status(err)
}

// nameRequest is request with the path of a name in the directory that is the node.
func (s *FS) nameRequest(stop interrupt, h *fuse.InHeader, name string) (*request, status) {
	r, code := s.request(stop, h)
	if !code.Ok() {
		return nil, code
	}
	r.path, code = s.child(r.node, name)
	return r, code
}

// child returns the path of a name in a directory.
func (s *FS) child(dir *node, name string) (string, status) {
	if len(name) > syscall.NAME_MAX {
		return "", status(syscall.ENAMETOOLONG)
	}
	path, err := s.nodes.path(dir)
	return strings.TrimSuffix(path, "/") + "/" + name, s.mount.Status(err)
}

// ask calls f with the VM's session, bounded in time, and returns the status of its error.
func (r *request) ask(limit time.Duration, f func(context.Context, *session) error) status {
	ctx, end := r.mount.Begin(r.stop, r.caller)
	defer end()
	err := r.sessions.ask(ctx, r.vm, limit, f)
	if err == nil {
		return fuse.OK
	}
	if e, ok := err.(syscall.Errno); ok { // the guest's own answer, and nothing that wraps one
		return status(e)
	}
	return r.mount.Failed(r.vm, err)
}

// askAttr is ask for attributes.
func (r *request) askAttr(f func(context.Context, *sftp.Client) (sftp.Attr, error)) (
	a sftp.Attr, code status) {
	code = r.ask(askWait, func(ctx context.Context, g *session) (err error) {
		a, err = f(ctx, g.client)
		return err
	})
	return a, code
}

// stat asks for the attributes of the request's path.
func (r *request) stat() (sftp.Attr, status) {
	return r.askAttr(func(ctx context.Context, c *sftp.Client) (sftp.Attr, error) {
		return c.Stat(ctx, r.path)()
	})
}

// shown returns the attributes that the kernel sees in place of a guest's; false for no file. A
// fifo would be the host's own and block its opener: it appears as a socket, which nobody can open.
func shown(a sftp.Attr) (sftp.Attr, bool) {
	switch a.Mode & syscall.S_IFMT {
	case syscall.S_IFIFO:
		a.Mode = a.Mode&^syscall.S_IFMT | syscall.S_IFSOCK
	case syscall.S_IFREG, syscall.S_IFDIR, syscall.S_IFLNK, syscall.S_IFSOCK,
		syscall.S_IFBLK, syscall.S_IFCHR:
	default:
		return a, false
	}
	return a, true
}

func (r *request) attr(n *node, a sftp.Attr, out *fuse.Attr) {
	r.nodes.sizeAndMode(n, func() { n.size, n.mode = a.Size, a.Mode })
	out.Ino, out.Mode, out.Size, out.Blocks, out.Blksize = n.id, a.Mode, a.Size, a.Blocks, MaxIO
	out.Rdev = uint32(a.Rdev)
	out.Nlink = 1 // of a directory: find(1) then does not count its subdirectories by it
	if n.kind != syscall.S_IFDIR {
		out.Nlink = uint32(max(1, min(a.Nlink, 1<<31)))
	}
	out.Owner = fuse.Owner{Uid: a.UID, Gid: a.GID}
	if o := r.vm.Snapshot().Owner; o.UID != 0 {
		out.Owner = fuse.Owner{Uid: o.UID, Gid: o.GID}
	}
	out.SetTimes(&a.Atime, &a.Mtime, &a.Ctime)
}

// entry answers with a name in a directory. The kernel then counts a look-up of it.
func (r *request) entry(name string, a sftp.Attr, out *fuse.EntryOut) status {
	a, ok := shown(a)
	if !ok {
		return fuse.EIO
	}
	n, err := r.nodes.named(r.node, name, a.Mode&syscall.S_IFMT)
	if err != nil {
		return r.mount.Status(err)
	}
	out.NodeId = n.id
	r.attr(n, a, &out.Attr)
	out.SetEntryTimeout(valid)
	out.SetAttrTimeout(valid)
	return fuse.OK
}

func (s *FS) Lookup(stop interrupt, h *fuse.InHeader, name string, out *fuse.EntryOut) status {
	r, code := s.nameRequest(stop, h, name)
	if !code.Ok() {
		return code
	}
	a, code := r.stat()
	if code == fuse.ENOENT {
		s.nodes.removed(r.node, name)
	}
	if !code.Ok() {
		return code
	}
	return r.entry(name, a, out)
}

// Path returns the serial of a file's VM and the file's path in the guest. Both are empty for a node
// that the kernel does not know, the path also for a file without a name.
func (s *FS) Path(node uint64) (serial uint64, path string) {
	n := s.nodes.get(node)
	if n == nil {
		return 0, ""
	}
	path, err := s.nodes.path(n)
	if err != nil {
		return n.serial, ""
	}
	return n.serial, path
}

// Forget subtracts look-ups of a node.
func (s *FS) Forget(node, lookups uint64) { s.nodes.forget(node, lookups) }

func (s *FS) GetAttr(stop interrupt, in *fuse.GetAttrIn, out *fuse.AttrOut) status {
	r, code := s.request(stop, &in.InHeader)
	if !code.Ok() {
		return code
	}
	if a, left := s.nodes.reported(r.node); left > 0 {
		return r.same(a, left, out)
	}
	var err error
	r.path, err = s.nodes.path(r.node)
	if err == errNoName && r.node.kind == syscall.S_IFREG {
		// It is open and has no name any more; the protocol asks by name.
		size, mode := s.nodes.sizeAndMode(r.node, nil)
		stat := sftp.FileStat{Blocks: (size + 511) / 512, Mtime: time.Now()}
		r.attr(r.node, sftp.Attr{Size: size, Mode: mode, FileStat: stat}, &out.Attr)
		out.Nlink = 0
		return fuse.OK
	}
	if err != nil {
		return s.mount.Status(err)
	}
	a, code := r.stat()
	if !code.Ok() {
		return code
	}
	return r.same(a, valid, out)
}

// same answers with attributes of a node that the kernel knows; ENOENT if another kind of file has
// its name now.
func (r *request) same(a sftp.Attr, left time.Duration, out *fuse.AttrOut) status {
	a, ok := shown(a)
	if !ok || a.Mode&syscall.S_IFMT != r.node.kind {
		return fuse.ENOENT
	}
	r.attr(r.node, a, &out.Attr)
	out.SetTimeout(left)
	return fuse.OK
}

func (s *FS) SetAttr(stop interrupt, in *fuse.SetAttrIn, out *fuse.AttrOut) status {
	r, code := s.pathRequest(stop, &in.InHeader)
	if !code.Ok() {
		return code
	}
	change := sftp.Change{
		Atime: setTime(in, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		Mtime: setTime(in, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
	}
	o := r.vm.Snapshot().Owner
	if in.Valid&fuse.FATTR_UID != 0 && (o.UID == 0 || in.Uid != o.UID) {
		change.UID = &in.Uid
	}
	if in.Valid&fuse.FATTR_GID != 0 && (o.UID == 0 || in.Gid != o.GID) {
		change.GID = &in.Gid
	}
	if o.UID != 0 && (change.UID != nil || change.GID != nil) {
		return fuse.EPERM // the files' owners in the guest are not shown
	}
	if in.Valid&fuse.FATTR_MODE != 0 {
		mode := in.Mode & 0o7777
		change.Mode = &mode
	}
	if in.Valid&fuse.FATTR_SIZE != 0 {
		change.Size = &in.Size
	}
	s.nodes.changed(r.node)
	a, code := r.askAttr(func(ctx context.Context, c *sftp.Client) (sftp.Attr, error) {
		return c.Set(ctx, r.path, change)()
	})
	if !code.Ok() {
		return code
	}
	return r.same(a, valid, out)
}

func setTime(in *fuse.SetAttrIn, set, now uint32, sec uint64, nsec uint32) int64 {
	switch {
	case in.Valid&now != 0:
		return sftp.TimeNow
	case in.Valid&set != 0:
		return time.Unix(int64(sec), int64(nsec)).UnixNano()
	}
	return sftp.TimeOmit
}

func (s *FS) StatFs(stop interrupt, h *fuse.InHeader, out *fuse.StatfsOut) status {
	r, code := s.pathRequest(stop, h)
	if !code.Ok() {
		return code
	}
	return r.ask(askWait, func(ctx context.Context, g *session) error {
		v, err := g.client.StatVFS(ctx, r.path)
		out.Blocks, out.Bfree, out.Bavail = v.Blocks, v.Bfree, v.Bavail
		out.Files, out.Ffree = v.Files, v.Ffree
		out.Bsize, out.Frsize, out.NameLen = uint32(v.Bsize), uint32(v.Frsize), syscall.NAME_MAX
		return err
	})
}
