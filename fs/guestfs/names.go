package guestfs

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm/guest/sftp"
)

// starter sends a request for a path, and returns a function that waits for the answer.
type starter func(ctx context.Context, c *sftp.Client, path string) (wait func() error)

// addName begins what makes a name in a directory, and answers with that name.
func (s *FS) addName(stop interrupt, h *fuse.InHeader, name string, out *fuse.EntryOut,
	begin starter) status {
	r, code := s.nameRequest(stop, h, name)
	if !code.Ok() {
		return code
	}
	s.nodes.changed(r.node)
	a, code := r.askAttr(func(ctx context.Context, c *sftp.Client) (sftp.Attr, error) {
		done, stat := begin(ctx, c, r.path), c.Stat(ctx, r.path) // both go out at once
		if err := done(); err != nil {
			return sftp.Attr{}, err
		}
		return stat()
	})
	if !code.Ok() {
		return code
	}
	s.nodes.removed(r.node, name) // an earlier file of this name is another file
	return r.entry(name, a, out)
}

func (s *FS) Mkdir(stop interrupt, in *fuse.MkdirIn, name string, out *fuse.EntryOut) status {
	code := s.addName(stop, &in.InHeader, name, out,
		func(ctx context.Context, c *sftp.Client, path string) func() error {
			return c.Mkdir(ctx, path)
		})
	if !code.Ok() || out.Mode&0o777 == in.Mode&0o777 {
		return code
	}
	// The protocol's mkdir has no mode.
	var changed fuse.AttrOut
	set := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{
		InHeader: in.InHeader, Valid: fuse.FATTR_MODE, Mode: in.Mode,
	}}
	set.NodeId = out.NodeId
	if code := s.SetAttr(stop, &set, &changed); code.Ok() {
		out.Attr = changed.Attr
	}
	return fuse.OK // the directory exists
}

func (s *FS) Symlink(stop interrupt, h *fuse.InHeader, target, name string,
	out *fuse.EntryOut) status {
	return s.addName(stop, h, name, out,
		func(ctx context.Context, c *sftp.Client, path string) func() error {
			return c.Symlink(ctx, target, path)
		})
}

func (s *FS) Link(stop interrupt, in *fuse.LinkIn, name string, out *fuse.EntryOut) status {
	r, code := s.request(stop, &in.InHeader)
	if !code.Ok() {
		return code
	}
	n := s.nodes.get(in.Oldnodeid)
	if !IsFile(in.Oldnodeid) || n == nil || n.serial != r.node.serial {
		return fuse.EXDEV
	}
	old, err := s.nodes.path(n)
	if err != nil {
		return s.mount.Status(err)
	}
	return s.addName(stop, &in.InHeader, name, out,
		func(ctx context.Context, c *sftp.Client, path string) func() error {
			return c.Link(ctx, old, path)
		})
}

// Readlink returns the target of a symbolic link, where no user can be made to follow it.
func (s *FS) Readlink(stop interrupt, h *fuse.InHeader) (target []byte, code status) {
	r, code := s.request(stop, h)
	if !code.Ok() {
		return nil, code
	}
	if !s.showLinks.Load() {
		return nil, fuse.EPERM
	}
	path, err := s.nodes.path(r.node)
	if err != nil {
		return nil, s.mount.Status(err)
	}
	code = r.ask(askWait, func(ctx context.Context, g *session) error {
		text, err := g.client.Readlink(ctx, path)
		target = []byte(text)
		return err
	})
	return target, code
}

func (s *FS) Unlink(stop interrupt, h *fuse.InHeader, name string) status {
	return s.removeName(stop, h, name, (*sftp.Client).Remove)
}

func (s *FS) Rmdir(stop interrupt, h *fuse.InHeader, name string) status {
	return s.removeName(stop, h, name, (*sftp.Client).Rmdir)
}

func (s *FS) removeName(stop interrupt, h *fuse.InHeader, name string,
	remove func(*sftp.Client, context.Context, string) error) status {
	r, code := s.nameRequest(stop, h, name)
	if !code.Ok() {
		return code
	}
	s.nodes.changed(r.node)
	code = r.ask(askWait, func(ctx context.Context, g *session) error {
		return remove(g.client, ctx, r.path)
	})
	if code.Ok() {
		s.nodes.removed(r.node, name)
	}
	return code
}

func (s *FS) Rename(stop interrupt, in *fuse.RenameIn, from, to string) status {
	const noReplace = 1 // RENAME_NOREPLACE of renameat2(2)
	r, code := s.nameRequest(stop, &in.InHeader, from)
	if !code.Ok() {
		return code
	}
	if _, root := s.mount.Root(in.Newdir); !root && !IsFile(in.Newdir) {
		return fuse.EXDEV
	}
	newDir := s.nodes.get(in.Newdir)
	switch {
	case newDir == nil || newDir.serial != r.node.serial:
		return fuse.EXDEV
	case in.Flags&^noReplace != 0:
		return fuse.EINVAL
	}
	path, code := s.child(newDir, to)
	if !code.Ok() {
		return code
	}
	s.nodes.changed(r.node)
	s.nodes.changed(newDir)
	code = r.ask(askWait, func(ctx context.Context, g *session) error {
		return g.client.Rename(ctx, r.path, path, in.Flags&noReplace == 0)
	})
	if code.Ok() {
		s.nodes.renamed(r.node, from, newDir, to)
	}
	return code
}

func (s *FS) Create(stop interrupt, in *fuse.CreateIn, name string, out *fuse.CreateOut) status {
	r, code := s.nameRequest(stop, &in.InHeader, name)
	if !code.Ok() {
		return code
	}
	flags := openFlags(in.Flags) | sftp.Create
	if in.Flags&syscall.O_EXCL != 0 {
		flags |= sftp.Exclusive
	}
	if in.Flags&syscall.O_TRUNC != 0 && in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		flags |= sftp.Truncate
	}
	s.nodes.changed(r.node)
	mode := in.Mode & 0o7777
	return r.open(in.Flags, flags, mode, &out.OpenOut, func(h *sftp.Handle) (*node, status) {
		return r.created(h, name, mode, &out.EntryOut)
	})
}

// created answers with the name of a new file.
func (r *request) created(h *sftp.Handle, name string, mode uint32,
	out *fuse.EntryOut) (*node, status) {
	r.nodes.removed(r.node, name)
	a := h.File
	if !h.HasAttrs {
		a = newFile(mode)
	}
	if a.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return nil, fuse.EIO
	}
	if code := r.entry(name, a, out); !code.Ok() {
		return nil, code
	}
	if h.HasAttrs && h.Dir.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		// Each change of a directory makes the kernel drop its attributes and ask for them before
		// the next file is created there. The agent has sent them along.
		r.nodes.keepReport(r.node, h.Dir, valid)
	}
	if !h.HasAttrs {
		out.SetAttrTimeout(0) // the kernel asks when they are needed
	}
	return r.nodes.get(out.NodeId), fuse.OK
}
