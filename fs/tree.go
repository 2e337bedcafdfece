package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/fs/guestfs"
)

// tree brings each request of the kernel to who serves its node: raw for the rows of the table, guestFS for the files of guests. The
// directory fs of a VM is a row, but what is in it is the guest's.
type tree struct{ raw }

// isFSRow reports whether a node is the directory that shows a guest's root.
func isFSRow(node uint64) bool {
	_, ok := guestMount{}.Root(node)
	return ok
}

// inGuest reports whether what is in a directory is a guest's.
func inGuest(node uint64) bool { return guestfs.IsFile(node) || isFSRow(node) }

func (t tree) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if inGuest(h.NodeId) {
		return t.guests.Lookup(cancel, h, name, out)
	}
	return t.raw.Lookup(cancel, h, name, out)
}

func (t tree) Forget(node, lookups uint64) {
	if guestfs.IsFile(node) {
		t.guests.Forget(node, lookups)
		return
	}
	if isFSRow(node) {
		if serial, _, _ := splitID(node); t.o.Manager.BySerial(serial) == nil {
			t.guests.Forget(node, 1)
		}
	}
	t.raw.Forget(node, lookups)
}

func (t tree) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if guestfs.IsFile(in.NodeId) {
		return t.guests.GetAttr(cancel, in, out)
	}
	return t.raw.GetAttr(cancel, in, out)
}

func (t tree) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if guestfs.IsFile(in.NodeId) {
		return t.guests.SetAttr(cancel, in, out)
	}
	return t.raw.SetAttr(cancel, in, out)
}

func (t tree) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if inGuest(in.NodeId) {
		return t.guests.Mkdir(cancel, in, name, out)
	}
	return t.raw.Mkdir(cancel, in, name, out)
}

func (t tree) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if inGuest(h.NodeId) {
		return t.guests.Unlink(cancel, h, name)
	}
	return t.raw.Unlink(cancel, h, name)
}

func (t tree) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if inGuest(h.NodeId) {
		return t.guests.Rmdir(cancel, h, name)
	}
	return t.raw.Rmdir(cancel, h, name)
}

func (t tree) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	switch {
	case inGuest(in.NodeId):
		return t.guests.Rename(cancel, in, from, to)
	case inGuest(in.Newdir):
		return fuse.Status(syscall.EXDEV)
	}
	return t.raw.Rename(cancel, in, from, to)
}

func (t tree) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if inGuest(in.NodeId) {
		return t.guests.Link(cancel, in, name, out)
	}
	return t.raw.Link(cancel, in, name, out)
}

func (t tree) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if inGuest(h.NodeId) {
		return t.guests.Symlink(cancel, h, target, name, out)
	}
	return t.raw.Symlink(cancel, h, target, name, out)
}

func (t tree) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	if guestfs.IsFile(h.NodeId) {
		return t.guests.Readlink(cancel, h)
	}
	return nil, fuse.EINVAL // no row is a link
}

func (t tree) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if inGuest(in.NodeId) {
		return t.guests.Create(cancel, in, name, out)
	}
	return t.raw.Create(cancel, in, name, out)
}

func (t tree) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if guestfs.IsFile(in.NodeId) {
		return t.guests.Open(cancel, in, out)
	}
	return t.raw.Open(cancel, in, out)
}

func (t tree) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if guestfs.IsFile(in.NodeId) {
		return t.guests.Read(cancel, in, buf)
	}
	return t.raw.Read(cancel, in, buf)
}

func (t tree) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if guestfs.IsFile(in.NodeId) {
		return t.guests.Write(cancel, in, data)
	}
	return t.raw.Write(cancel, in, data)
}

func (t tree) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if guestfs.IsFile(in.NodeId) {
		return t.guests.Fsync(cancel, in)
	}
	return t.raw.Fsync(cancel, in)
}

func (t tree) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	if guestfs.IsFile(in.NodeId) {
		t.guests.Release(cancel, in)
		return
	}
	t.raw.Release(cancel, in)
}

func (t tree) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if inGuest(in.NodeId) {
		return t.guests.OpenDir(cancel, in, out)
	}
	return t.raw.OpenDir(cancel, in, out)
}

func (t tree) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if inGuest(in.NodeId) {
		return t.guests.ReadDir(cancel, in, out)
	}
	return t.raw.ReadDir(cancel, in, out)
}

func (t tree) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if inGuest(in.NodeId) {
		return t.guests.ReadDirPlus(cancel, in, out)
	}
	return t.raw.ReadDirPlus(cancel, in, out)
}

func (t tree) ReleaseDir(in *fuse.ReleaseIn) {
	if inGuest(in.NodeId) {
		t.guests.ReleaseDir(in)
		return
	}
	t.raw.ReleaseDir(in)
}

func (t tree) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if guestfs.IsFile(in.NodeId) {
		return t.guests.Fsync(cancel, in)
	}
	return t.raw.FsyncDir(cancel, in)
}

func (t tree) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if inGuest(h.NodeId) {
		return t.guests.StatFs(cancel, h, out)
	}
	return t.raw.StatFs(cancel, h, out)
}
