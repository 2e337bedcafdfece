package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// tree brings each request of the kernel to who serves its node: raw for the rows of the table, guestFS for the files of guests. The
// directory fs of a VM is a row, but what is in it is the guest's.
type tree struct{ raw }

// isFSRow reports whether a node is the directory that shows a guest's root.
func isFSRow(node uint64) bool {
	if isGuest(node) {
		return false
	}
	_, row, _ := splitID(node)
	return int(row) < len(rows) && rows[row] == fsRow
}

// inGuest reports whether what is in a directory is a guest's.
func inGuest(node uint64) bool { return isGuest(node) || isFSRow(node) }

func (t tree) guest() guestFS { return guestFS{t.Server} }

func (t tree) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if inGuest(h.NodeId) {
		return t.guest().Lookup(cancel, h, name, out)
	}
	return t.raw.Lookup(cancel, h, name, out)
}

func (t tree) Forget(node, lookups uint64) {
	if isGuest(node) {
		t.guest().Forget(node, lookups)
		return
	}
	if isFSRow(node) {
		if serial, _, _ := splitID(node); t.o.Manager.BySerial(serial) == nil {
			t.guestNodes.forget(node, 1)
		}
	}
	t.raw.Forget(node, lookups)
}

func (t tree) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if isGuest(in.NodeId) {
		return t.guest().GetAttr(cancel, in, out)
	}
	return t.raw.GetAttr(cancel, in, out)
}

func (t tree) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if isGuest(in.NodeId) {
		return t.guest().SetAttr(cancel, in, out)
	}
	return t.raw.SetAttr(cancel, in, out)
}

func (t tree) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if inGuest(in.NodeId) {
		return t.guest().Mkdir(cancel, in, name, out)
	}
	return t.raw.Mkdir(cancel, in, name, out)
}

func (t tree) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if inGuest(h.NodeId) {
		return t.guest().Unlink(cancel, h, name)
	}
	return t.raw.Unlink(cancel, h, name)
}

func (t tree) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if inGuest(h.NodeId) {
		return t.guest().Rmdir(cancel, h, name)
	}
	return t.raw.Rmdir(cancel, h, name)
}

func (t tree) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	switch {
	case inGuest(in.NodeId):
		return t.guest().Rename(cancel, in, from, to)
	case inGuest(in.Newdir):
		return fuse.Status(syscall.EXDEV)
	}
	return t.raw.Rename(cancel, in, from, to)
}

func (t tree) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if inGuest(in.NodeId) {
		return t.guest().Link(cancel, in, name, out)
	}
	return t.raw.Link(cancel, in, name, out)
}

func (t tree) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if inGuest(h.NodeId) {
		return t.guest().Symlink(cancel, h, target, name, out)
	}
	return t.raw.Symlink(cancel, h, target, name, out)
}

func (t tree) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	if isGuest(h.NodeId) {
		return t.guest().Readlink(cancel, h)
	}
	return nil, fuse.EINVAL // no row is a link
}

func (t tree) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if inGuest(in.NodeId) {
		return t.guest().Create(cancel, in, name, out)
	}
	return t.raw.Create(cancel, in, name, out)
}

func (t tree) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if isGuest(in.NodeId) {
		return t.guest().Open(cancel, in, out)
	}
	return t.raw.Open(cancel, in, out)
}

func (t tree) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if isGuest(in.NodeId) {
		return t.guest().Read(cancel, in, buf)
	}
	return t.raw.Read(cancel, in, buf)
}

func (t tree) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if isGuest(in.NodeId) {
		return t.guest().Write(cancel, in, data)
	}
	return t.raw.Write(cancel, in, data)
}

func (t tree) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if isGuest(in.NodeId) {
		return t.guest().Fsync(cancel, in)
	}
	return t.raw.Fsync(cancel, in)
}

func (t tree) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	if isGuest(in.NodeId) {
		t.guest().Release(in.Fh)
		return
	}
	t.raw.Release(cancel, in)
}

func (t tree) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if inGuest(in.NodeId) {
		return t.guest().OpenDir(cancel, in, out)
	}
	return t.raw.OpenDir(cancel, in, out)
}

func (t tree) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if inGuest(in.NodeId) {
		return t.guest().ReadDir(cancel, in, out)
	}
	return t.raw.ReadDir(cancel, in, out)
}

func (t tree) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if inGuest(in.NodeId) {
		return t.guest().ReadDirPlus(cancel, in, out)
	}
	return t.raw.ReadDirPlus(cancel, in, out)
}

func (t tree) ReleaseDir(in *fuse.ReleaseIn) {
	if inGuest(in.NodeId) {
		t.guest().Release(in.Fh)
		return
	}
	t.raw.ReleaseDir(in)
}

func (t tree) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if isGuest(in.NodeId) {
		return t.guest().Fsync(cancel, in)
	}
	return t.raw.FsyncDir(cancel, in)
}

func (t tree) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if inGuest(h.NodeId) {
		return t.guest().StatFs(cancel, h, out)
	}
	return t.raw.StatFs(cancel, h, out)
}
