package fs

import (
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm"
)

// tree implements fuse.RawFileSystem for the rows of the table. The embedded default answers
// ENOSYS, after which the kernel never asks again. Where that would be silence, tree refuses
// instead.
type tree struct {
	fuse.RawFileSystem
	*Server
}

func (t tree) String() string    { return "banger" }
func (t tree) Init(*fuse.Server) {}
func (t tree) OnUnmount()        {}

func (s *Server) newCall(stop interrupt, c fuse.Caller) call {
	ctx := &fuse.Context{Caller: c, Cancel: stop}
	return call{server: s, ctx: ctx, uid: c.Uid, gid: c.Gid, pid: c.Pid}
}

// request finds what a node stands for. ENOENT for what has been removed.
func (t tree) request(stop interrupt, h *fuse.InHeader) (*request, status) {
	c := t.newCall(stop, h.Caller)
	if r, ok := c.resolve(h.NodeId); ok {
		return r, fuse.OK
	}
	return nil, fuse.ENOENT
}

func (t tree) Lookup(stop interrupt, h *fuse.InHeader, name string, out *fuse.EntryOut) status {
	dir, code := t.request(stop, h)
	if !code.Ok() {
		return code
	}
	r, ok := dir.child(name)
	if !ok {
		return fuse.ENOENT
	}
	if r.file.writable() {
		aim, aimed := t.nodes.aimed(r.node)
		if aimed && h.Pid == t.nudgerTID.Load() {
			t.nodes.add(r.node, aim)
			r.node = aim
		} else {
			r.node = t.nodes.fresh(r.node)
		}
		_, _, r.param = splitID(r.node)
	}
	t.entry(r, out)
	return fuse.OK
}

// entry answers with a name, of which the kernel then counts a look-up.
func (t tree) entry(r *request, out *fuse.EntryOut) {
	out.NodeId = r.node
	t.attr(r, &out.Attr)
	out.SetAttrTimeout(attrValid(r.file))
	switch {
	case r.file.writable():
		out.SetEntryTimeout(notKept) // the next look-up returns another node
		return
	case r.file.watch != nil:
		t.nodes.add(r.node, r.node)
	}
	if r.file.has(followsHealth) {
		t.followers.named(r.node)
	}
	out.SetEntryTimeout(attrSeconds * time.Second)
}

func (t tree) Forget(node, lookups uint64) {
	gone, last := t.nodes.forget(node, lookups)
	if !gone {
		return
	}
	t.sizes.of.Delete(node)
	t.eventSizes.forget(node)
	t.renderings.Delete(node)
	if last {
		t.sizes.of.Delete(plainID(node))
	}
	if _, row, _ := splitID(node); row != nil && row.has(followsHealth) {
		t.followers.forget(node)
	}
}

func (t tree) Mkdir(stop interrupt, in *fuse.MkdirIn, name string, out *fuse.EntryOut) status {
	r, code := t.request(stop, &in.InHeader)
	if !code.Ok() {
		return code
	}
	names := r.file.names
	if names == nil || names.mkdir == nil {
		return t.refused(r.uid, nil, fmt.Errorf("cannot make the directory %s here, "+
			"only in vms, images and snapshots: %w", name, vmm.ErrNotPermitted))
	}
	name = strings.Clone(name) // the kernel's request ends before a detached change
	owner := vmm.Owner{UID: in.Uid, GID: in.Gid, Mode: in.Mode & 0o777}
	if code := t.change(r, r.vm, func() error { return names.mkdir(r, name, owner) }); !code.Ok() {
		return code
	}
	c, ok := r.child(name)
	if !ok {
		return fuse.ENOENT // removed already
	}
	t.entry(c, out)
	return fuse.OK
}

func (t tree) Rmdir(stop interrupt, h *fuse.InHeader, name string) status {
	r, code := t.request(stop, h)
	if !code.Ok() {
		return code
	}
	names := r.file.names
	if names == nil || names.rmdir == nil {
		return t.refused(r.uid, nil, fmt.Errorf("cannot remove the directory %s, "+
			"only those in vms, images and snapshots: %w", name, vmm.ErrNotPermitted))
	}
	name = strings.Clone(name)
	return t.change(r, r.vmOf(name), func() error { return names.rmdir(r, name) })
}

// vmOf returns the VM that a name in the directory is or belongs to, nil for none.
func (r *request) vmOf(name string) *vmm.VM {
	if c, ok := r.child(name); ok {
		return c.vm
	}
	return r.vm
}

// change makes or removes a directory. Its refusal goes into the `error` of v, if there is a VM. In
// a VM's directory it is a use of the VM, and success clears that `error`.
func (t tree) change(r *request, v *vmm.VM, do func() error) status {
	defer r.blocking()()
	if r.vm != nil {
		r.vm.Touch()
	}
	if err := do(); err != nil {
		return t.refused(r.uid, v, err)
	}
	if r.vm != nil {
		r.vm.Fail(nil)
	}
	return fuse.OK
}

func (t tree) Rename(stop interrupt, in *fuse.RenameIn, from, to string) status {
	const exchange = 2 // RENAME_EXCHANGE of renameat2(2)
	r, code := t.request(stop, &in.InHeader)
	if !code.Ok() {
		return code
	}
	names := r.file.names
	if names == nil || names.rename == nil {
		return t.refused(r.uid, nil, fmt.Errorf("cannot move %s, only VMs within vms: %w",
			from, vmm.ErrNotPermitted))
	}
	from, to = strings.Clone(from), strings.Clone(to)
	return t.change(r, r.vmOf(from), func() error {
		switch {
		case in.Newdir != r.node:
			return fmt.Errorf("cannot move %s out of vms, only rename it there: %w",
				from, vmm.ErrNotPermitted)
		case in.Flags&exchange != 0:
			return fmt.Errorf("cannot exchange %s with %s: %w", from, to, vmm.ErrInvalid)
		}
		return names.rename(r, from, to)
	})
}

// Only rmdir destroys and only mkdir makes.

func (t tree) Unlink(interrupt, *fuse.InHeader, string) status { return fuse.EPERM }
func (t tree) Mknod(interrupt, *fuse.MknodIn, string, *fuse.EntryOut) status {
	return fuse.EPERM
}
func (t tree) Create(interrupt, *fuse.CreateIn, string, *fuse.CreateOut) status {
	return fuse.EPERM
}
func (t tree) Tmpfile(interrupt, *fuse.CreateIn, *fuse.CreateOut) status {
	return fuse.EPERM
}
func (t tree) Link(interrupt, *fuse.LinkIn, string, *fuse.EntryOut) status {
	return fuse.EPERM
}
func (t tree) Symlink(interrupt, *fuse.InHeader, string, string, *fuse.EntryOut) status {
	return fuse.EPERM
}
func (t tree) Readlink(interrupt, *fuse.InHeader) ([]byte, status) {
	return nil, fuse.EINVAL
}
func (t tree) Fallocate(interrupt, *fuse.FallocateIn) status {
	return status(syscall.EOPNOTSUPP)
}

func (t tree) Fsync(interrupt, *fuse.FsyncIn) status    { return fuse.OK }
func (t tree) FsyncDir(interrupt, *fuse.FsyncIn) status { return fuse.OK }

func (t tree) StatFs(_ interrupt, _ *fuse.InHeader, out *fuse.StatfsOut) status {
	out.Bsize, out.NameLen = 4096, 255
	return fuse.OK
}
