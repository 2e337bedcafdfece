package fs

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm"
	"banger/vmm/guest/sftp"
)

// guestFS serves what is below vms/NAME/fs: the guest's files, over its agent's file transfer. tree.go brings the kernel's requests here.
//
// Whoever passes the directory fs uses the files with the rights of the guest's root. The kernel checks modes and owners as they are shown:
// of a VM of root's they are the guest's; of another's VM all files appear as its owner's, as in a user namespace of one user.
type guestFS struct{ *Server }

// guestValid is how long the kernel may keep what it is told: the guest changes its files without telling.
const guestValid = time.Second

// fsListed reports whether the directory of a VM lists fs.
func fsListed(s *vmm.Snapshot) bool { return s.Config.ExposeFS && s.State == vmm.Running }

// request finds the node and the VM. ENOENT for what has been removed.
func (s guestFS) request(cancel <-chan struct{}, h *fuse.InHeader) (*request, *guestNode, fuse.Status) {
	n := s.guestNodes.get(h.NodeId)
	if n == nil {
		return nil, nil, fuse.ENOENT
	}
	v := s.o.Manager.BySerial(n.serial)
	if v == nil {
		return nil, nil, fuse.ENOENT
	}
	return &request{
		server: s.Server, ctx: &fuse.Context{Caller: h.Caller, Cancel: cancel}, vm: v, node: h.NodeId, uid: h.Uid, gid: h.Gid, pid: h.Pid,
	}, n, fuse.OK
}

// ask calls f with the VM's session, bounded in time, and gives the errno of what failed.
func (s guestFS) ask(r *request, limit time.Duration, f func(context.Context, *guestSession) error) fuse.Status {
	defer r.blocking()()
	err := s.guestSessions.ask(r.ctx, r.vm, limit, f)
	if err == nil {
		return fuse.OK
	}
	if e, ok := err.(syscall.Errno); ok { // what the guest reports, and nothing that wraps one
		return fuse.Status(e)
	}
	code := errno(err)
	s.o.Log.Log(r.ctx, level(err, slog.LevelDebug), "cannot use a file of the guest", "vm", r.snap().Name, "err", err)
	return code
}

// child is the path of a name in a directory.
func (s guestFS) child(dir *guestNode, name string) (string, fuse.Status) {
	if len(name) > syscall.NAME_MAX {
		return "", fuse.Status(syscall.ENAMETOOLONG)
	}
	path, err := s.guestNodes.path(dir)
	if err != nil {
		return "", errno(err)
	}
	return strings.TrimSuffix(path, "/") + "/" + name, fuse.OK
}

// at is request with the path of the node.
func (s guestFS) at(cancel <-chan struct{}, h *fuse.InHeader) (r *request, n *guestNode, path string, code fuse.Status) {
	if r, n, code = s.request(cancel, h); !code.Ok() {
		return nil, nil, "", code
	}
	path, err := s.guestNodes.path(n)
	return r, n, path, errno(err)
}

// in is request for a name in the directory that is the node, with its path.
func (s guestFS) in(cancel <-chan struct{}, h *fuse.InHeader, name string) (r *request, dir *guestNode, path string, code fuse.Status) {
	if r, dir, code = s.request(cancel, h); !code.Ok() {
		return nil, nil, "", code
	}
	path, code = s.child(dir, name)
	return r, dir, path, code
}

// stat asks for the attributes of what has the path.
func (s guestFS) stat(r *request, path string) (a sftp.Attr, code fuse.Status) {
	code = s.ask(r, guestWait, func(ctx context.Context, g *guestSession) (err error) {
		a, err = g.client.Stat(ctx, path)()
		return err
	})
	return a, code
}

// shown makes of a guest's attributes those that the kernel is told. A fifo would be the host's own, and block who opens it: it is shown as a
// socket, which nobody can open. False for what is no file.
func shown(a sftp.Attr) (sftp.Attr, bool) {
	switch a.Mode & syscall.S_IFMT {
	case syscall.S_IFIFO:
		a.Mode = a.Mode&^syscall.S_IFMT | syscall.S_IFSOCK
	case syscall.S_IFREG, syscall.S_IFDIR, syscall.S_IFLNK, syscall.S_IFSOCK, syscall.S_IFBLK, syscall.S_IFCHR:
	default:
		return a, false
	}
	return a, true
}

func (s guestFS) attr(r *request, n *guestNode, a sftp.Attr, out *fuse.Attr) {
	s.guestNodes.told(n, a.Size, a.Mode)
	out.Ino, out.Mode, out.Size, out.Blocks, out.Blksize = n.id, a.Mode, a.Size, a.Blocks, maxIO
	out.Rdev = uint32(a.Rdev)
	out.Nlink = 1 // of a directory, as find(1) then does not count on it
	if n.kind != syscall.S_IFDIR {
		out.Nlink = uint32(max(1, min(a.Nlink, 1<<31)))
	}
	out.Owner = fuse.Owner{Uid: a.UID, Gid: a.GID}
	if o := r.snap().Owner; o.UID != 0 {
		out.Owner = fuse.Owner{Uid: o.UID, Gid: o.GID}
	}
	out.SetTimes(&a.Atime, &a.Mtime, &a.Ctime)
}

// entry tells the kernel of a name in a directory, of which it then counts a look-up.
func (s guestFS) entry(r *request, dir *guestNode, name string, a sftp.Attr, out *fuse.EntryOut) fuse.Status {
	a, ok := shown(a)
	if !ok {
		return fuse.EIO
	}
	n, err := s.guestNodes.named(dir, name, a.Mode&syscall.S_IFMT)
	if err != nil {
		return errno(err)
	}
	out.NodeId = n.id
	s.attr(r, n, a, &out.Attr)
	out.SetEntryTimeout(guestValid)
	out.SetAttrTimeout(guestValid)
	return fuse.OK
}

func (s guestFS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	r, dir, path, code := s.in(cancel, h, name)
	if !code.Ok() {
		return code
	}
	a, code := s.stat(r, path)
	if code == fuse.ENOENT {
		s.guestNodes.removed(dir, name)
	}
	if !code.Ok() {
		return code
	}
	return s.entry(r, dir, name, a, out)
}

func (s guestFS) Forget(node, lookups uint64) { s.guestNodes.forget(node, lookups) }

func (s guestFS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	r, n, code := s.request(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	if a, valid := s.guestNodes.still(n); valid > 0 {
		return s.same(r, n, a, valid, out)
	}
	path, err := s.guestNodes.path(n)
	if errors.Is(err, vmm.ErrNotFound) && n.kind == syscall.S_IFREG {
		// It is open and has no name any more; the protocol asks by name.
		size, mode := s.guestNodes.last(n)
		s.attr(r, n, sftp.Attr{Size: size, Mode: mode, FileStat: sftp.FileStat{Blocks: (size + 511) / 512, Mtime: time.Now()}}, &out.Attr)
		out.Nlink = 0
		return fuse.OK
	}
	if err != nil {
		return errno(err)
	}
	a, code := s.stat(r, path)
	if !code.Ok() {
		return code
	}
	return s.same(r, n, a, guestValid, out)
}

// same tells the kernel of a node that it knows; ENOENT if another kind of file has its name now.
func (s guestFS) same(r *request, n *guestNode, a sftp.Attr, valid time.Duration, out *fuse.AttrOut) fuse.Status {
	a, ok := shown(a)
	if !ok || a.Mode&syscall.S_IFMT != n.kind {
		return fuse.ENOENT
	}
	s.attr(r, n, a, &out.Attr)
	out.SetTimeout(valid)
	return fuse.OK
}

func (s guestFS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	r, n, path, code := s.at(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	change := sftp.Change{Atime: setTime(in, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec), Mtime: setTime(in, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec)}
	o := r.snap().Owner
	if in.Valid&fuse.FATTR_UID != 0 && (o.UID == 0 || in.Uid != o.UID) {
		change.UID = &in.Uid
	}
	if in.Valid&fuse.FATTR_GID != 0 && (o.UID == 0 || in.Gid != o.GID) {
		change.GID = &in.Gid
	}
	if o.UID != 0 && (change.UID != nil || change.GID != nil) {
		return fuse.EPERM // whose they are in the guest is not shown
	}
	if in.Valid&fuse.FATTR_MODE != 0 {
		mode := in.Mode & 0o7777
		change.Mode = &mode
	}
	if in.Valid&fuse.FATTR_SIZE != 0 {
		change.Size = &in.Size
	}
	s.guestNodes.changes(n)
	var a sftp.Attr
	code = s.ask(r, guestWait, func(ctx context.Context, g *guestSession) (err error) {
		a, err = g.client.Set(ctx, path, change)()
		return err
	})
	if !code.Ok() {
		return code
	}
	return s.same(r, n, a, guestValid, out)
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

// make makes a name in a directory with what begin begins, and tells the kernel of it.
func (s guestFS) make(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut, begin func(context.Context, *sftp.Client, string) func() error) fuse.Status {
	r, dir, path, code := s.in(cancel, h, name)
	if !code.Ok() {
		return code
	}
	s.guestNodes.changes(dir)
	var a sftp.Attr
	code = s.ask(r, guestWait, func(ctx context.Context, g *guestSession) (err error) {
		done, stat := begin(ctx, g.client, path), g.client.Stat(ctx, path) // both go out at once
		if err = done(); err != nil {
			return err
		}
		a, err = stat()
		return err
	})
	if !code.Ok() {
		return code
	}
	s.guestNodes.removed(dir, name) // what had the name before is another file
	return s.entry(r, dir, name, a, out)
}

func (s guestFS) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	code := s.make(cancel, &in.InHeader, name, out, func(ctx context.Context, c *sftp.Client, path string) func() error { return c.Mkdir(ctx, path) })
	if !code.Ok() || out.Mode&0o777 == in.Mode&0o777 {
		return code
	}
	// The protocol's mkdir has no mode.
	var changed fuse.AttrOut
	set := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: in.InHeader, Valid: fuse.FATTR_MODE, Mode: in.Mode}}
	set.NodeId = out.NodeId
	if code := s.SetAttr(cancel, &set, &changed); code.Ok() {
		out.Attr = changed.Attr
	}
	return fuse.OK // it is made
}

func (s guestFS) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return s.make(cancel, h, name, out, func(ctx context.Context, c *sftp.Client, path string) func() error {
		return c.Symlink(ctx, target, path)
	})
}

func (s guestFS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	_, dir, code := s.request(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	n := s.guestNodes.get(in.Oldnodeid)
	if !isGuest(in.Oldnodeid) || n == nil || n.serial != dir.serial {
		return fuse.EXDEV
	}
	old, err := s.guestNodes.path(n)
	if err != nil {
		return errno(err)
	}
	return s.make(cancel, &in.InHeader, name, out, func(ctx context.Context, c *sftp.Client, path string) func() error { return c.Link(ctx, old, path) })
}

func (s guestFS) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return s.remove(cancel, h, name, (*sftp.Client).Remove)
}

func (s guestFS) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return s.remove(cancel, h, name, (*sftp.Client).Rmdir)
}

func (s guestFS) remove(cancel <-chan struct{}, h *fuse.InHeader, name string, remove func(*sftp.Client, context.Context, string) error) fuse.Status {
	r, dir, path, code := s.in(cancel, h, name)
	if !code.Ok() {
		return code
	}
	s.guestNodes.changes(dir)
	code = s.ask(r, guestWait, func(ctx context.Context, g *guestSession) error { return remove(g.client, ctx, path) })
	if code.Ok() {
		s.guestNodes.removed(dir, name)
	}
	return code
}

func (s guestFS) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	const noReplace = 1 // RENAME_NOREPLACE of renameat2(2)
	r, dir, code := s.request(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	if !isGuest(in.Newdir) && !isFSRow(in.Newdir) {
		return fuse.EXDEV
	}
	newDir := s.guestNodes.get(in.Newdir)
	switch {
	case newDir == nil || newDir.serial != dir.serial:
		return fuse.EXDEV
	case in.Flags&^noReplace != 0:
		return fuse.EINVAL
	}
	old, code := s.child(dir, from)
	if !code.Ok() {
		return code
	}
	path, code := s.child(newDir, to)
	if !code.Ok() {
		return code
	}
	s.guestNodes.changes(dir)
	s.guestNodes.changes(newDir)
	code = s.ask(r, guestWait, func(ctx context.Context, g *guestSession) error {
		return g.client.Rename(ctx, old, path, in.Flags&noReplace == 0)
	})
	if code.Ok() {
		s.guestNodes.renamed(dir, from, newDir, to)
	}
	return code
}

// Readlink says what a symbolic link says, where nobody can be made to follow it.
func (s guestFS) Readlink(cancel <-chan struct{}, h *fuse.InHeader) (out []byte, code fuse.Status) {
	r, n, code := s.request(cancel, h)
	if !code.Ok() {
		return nil, code
	}
	if !s.noFollow {
		return nil, fuse.EPERM
	}
	path, err := s.guestNodes.path(n)
	if err != nil {
		return nil, errno(err)
	}
	code = s.ask(r, guestWait, func(ctx context.Context, g *guestSession) error {
		target, err := g.client.Readlink(ctx, path)
		out = []byte(target)
		return err
	})
	return out, code
}

func (s guestFS) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	r, _, path, code := s.at(cancel, h)
	if !code.Ok() {
		return code
	}
	return s.ask(r, guestWait, func(ctx context.Context, g *guestSession) error {
		v, err := g.client.StatVFS(ctx, path)
		out.Blocks, out.Bfree, out.Bavail, out.Files, out.Ffree = v.Blocks, v.Bfree, v.Bavail, v.Files, v.Ffree
		out.Bsize, out.Frsize, out.NameLen = uint32(v.Bsize), uint32(v.Frsize), syscall.NAME_MAX
		return err
	})
}
