package fs

import (
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/fs/guestfs"
	"banger/vmm"
)

const (
	firstSize   = 4096 // st_size of a generated file before its first open, as in sysfs
	attrSeconds = 1    // that the kernel may keep names and attributes
)

// attributes are what stat(2) shows of a file.
type attributes struct {
	mode             uint32 // permission bits
	uid, gid         uint32
	size             int64
	changed, created time.Time
}

// attributes returns a file's attributes, for a generated file without its size. It collects
// nothing.
func (r *request) attributes() attributes {
	s := r.server
	a := attributes{
		mode: r.file.mode, uid: s.uid, gid: s.gid, changed: s.started, created: s.started,
	}
	switch {
	case r.session != nil:
		a.uid, a.gid = r.session.uid, r.session.gid
		a.changed, a.created = r.session.made, r.session.made
	case r.vm != nil:
		snap := r.snap()
		a.uid, a.gid, a.mode = snap.Owner.UID, snap.Owner.GID, modeFor(r.file, snap.Owner)
		a.changed, a.created = snap.Created, snap.Created
		if t, ok := snap.Changed.Of(strings.TrimSuffix(r.file.name, ".json")); ok {
			a.changed = t
		}
	case r.image != 0:
		if i, ok := s.o.Images.Info(r.image); ok {
			a.uid, a.gid, a.changed, a.created = i.Owner.UID, i.Owner.GID, i.Changed, i.Created
		}
	}
	if r.vm == nil && r.file.changeable() {
		// The group of the daemon's own user is not the one whose members may change this.
		a.mode &^= 0o020
		if s.o.Group >= 0 {
			a.gid = uint32(s.o.Group)
			a.mode |= a.mode >> 3 & 0o020 // as the owner
		}
	}
	if r.file.attr != nil {
		r.file.attr(r, &a)
	}
	return a
}

// changeable reports whether users change a file by writing it, or a directory by mkdir.
func (f *file) changeable() bool {
	return f.writable() || f.names != nil && f.names.mkdir != nil
}

// modeFor returns the permission bits of a VM's file. Classes of users that may write the VM's
// directory get the owner's bits, others none to write.
func modeFor(f *file, o vmm.Owner) uint32 {
	mode := f.mode
	for _, shift := range []uint32{3, 0} { // the group, others
		if o.Mode>>shift&0o2 != 0 {
			mode |= f.mode >> 6 & 0o7 << shift
		} else {
			mode &^= 0o2 << shift
		}
	}
	return mode
}

// attr answers with the attributes of a node.
func (t tree) attr(r *request, out *fuse.Attr) {
	a := r.attributes()
	out.Ino = plainID(r.node)
	out.Mode = r.file.fileType() | a.mode
	out.Nlink = 1
	out.Blksize = 4096
	out.Owner = fuse.Owner{Uid: a.uid, Gid: a.gid}
	out.SetTimes(&a.changed, &a.changed, &a.created)
	if r.file.kind != plain {
		return
	}
	if r.file.open == nil {
		a.size = t.sizes.sent(out.Ino)
		t.sizes.send(r.node, a.size) // the kernel knows it of this node from now on
	}
	out.Size = uint64(a.size)
	out.Blocks = (out.Size + 511) / 512
}

// fileType returns the type bits of the mode.
func (f *file) fileType() uint32 {
	if f.kind != plain {
		return syscall.S_IFDIR
	}
	return syscall.S_IFREG
}

// notKept is the timeout of what the kernel must not keep. A nanosecond would be a tick of its
// clock, some milliseconds.
const notKept = 0

// attrValid returns how long the kernel may keep attributes.
func attrValid(f *file) time.Duration {
	if f.has(uncached) || f.writable() {
		return notKept
	}
	return attrSeconds * time.Second
}

func (t tree) GetAttr(stop interrupt, in *fuse.GetAttrIn, out *fuse.AttrOut) status {
	r, code := t.request(stop, &in.InHeader)
	if !code.Ok() {
		return code
	}
	t.attr(r, &out.Attr)
	out.SetTimeout(attrValid(r.file))
	return fuse.OK
}

// Lseek answers for a file without holes. ENOSYS, once, would end the requests for guests' files
// too.
func (t tree) Lseek(stop interrupt, in *fuse.LseekIn, out *fuse.LseekOut) status {
	get := fuse.GetAttrIn{InHeader: in.InHeader}
	var a fuse.AttrOut
	if code := t.GetAttr(stop, &get, &a); !code.Ok() {
		return code
	}
	var code status
	out.Offset, code = guestfs.SeekDense(in.Offset, in.Whence, a.Size)
	return code
}

// SetAttr ignores the size of an O_TRUNC and changes the owner and mode of a VM's directory. A
// change of times is a use of the VM.
func (t tree) SetAttr(stop interrupt, in *fuse.SetAttrIn, out *fuse.AttrOut) status {
	r, code := t.request(stop, &in.InHeader)
	if !code.Ok() {
		return code
	}
	if in.Valid&fuse.FATTR_SIZE != 0 && !r.file.writable() {
		return fuse.EACCES
	}
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID|fuse.FATTR_MODE) != 0 {
		if err := r.changeOwner(in); err != nil {
			return t.failed(r, err)
		}
		t.forgetOwner(r.vm, r.file)
	}
	// The daemon's own changes of times wake inotify's watchers.
	times := in.Valid&(fuse.FATTR_MTIME|fuse.FATTR_ATIME) != 0
	if times && r.vm != nil && r.pid != t.nudgerTID.Load() {
		set := in.Valid&(fuse.FATTR_MTIME|fuse.FATTR_MTIME_NOW) == fuse.FATTR_MTIME
		if set && r.file.name == "touched" {
			r.vm.SetTouched(notAfterNow(time.Unix(int64(in.Mtime), int64(in.Mtimensec))))
		} else {
			r.vm.Touch()
		}
	}
	t.attr(r, &out.Attr)
	out.SetTimeout(attrValid(r.file))
	return fuse.OK
}

// ownerChange is a chown or chmod; nil fields stay as they are.
type ownerChange struct{ uid, gid, mode *uint32 }

func (r *request) changeOwner(in *fuse.SetAttrIn) error {
	if r.file.chown == nil {
		return fmt.Errorf("owner and mode are those of the VM's directory: %w", vmm.ErrNotPermitted)
	}
	valid := func(bit, value uint32) *uint32 {
		if in.Valid&bit == 0 {
			return nil
		}
		return &value
	}
	defer r.blocking()()
	return r.file.chown(r, ownerChange{
		uid:  valid(fuse.FATTR_UID, in.Uid),
		gid:  valid(fuse.FATTR_GID, in.Gid),
		mode: valid(fuse.FATTR_MODE, in.Mode),
	})
}

// forgetOwner makes the kernel ask again for the owners and modes of what is below a VM's
// directory, by which it permits opens.
func (t tree) forgetOwner(v *vmm.VM, f *file) {
	for i := range f.files {
		t.forgetOwner(v, &f.files[i])
	}
	if f.chown == nil && attrValid(f) != notKept {
		t.fuse.InodeNotify(nodeID(v.Serial(), f.number, 0), -1, 0) // fails for an unknown one
	}
}

// sizes holds the lengths of the last captures of the files that the kernel knows, unless they are
// firstSize. For files with several nodes it also holds the length last sent of each node.
type sizes struct{ of sync.Map } // int64 by node

func (t *sizes) sent(node uint64) int64 {
	if n, ok := t.of.Load(node); ok {
		return n.(int64)
	}
	return firstSize
}

// send keeps a new length and returns the one before.
func (t *sizes) send(node uint64, size int64) int64 {
	old := t.sent(node)
	if old != size {
		t.of.Store(node, size)
	}
	return old
}

// sendSize makes the kernel use the capture's length for sendfile(2) and fstat(2). Storing its last
// byte in the page cache is the only thing that raises the size of a file that is being read. In
// any case the kernel asks again. The caller holds no lock.
func (t tree) sendSize(node uint64, b []byte) {
	size := int64(len(b))
	old := t.sizes.send(node, size)
	if file := plainID(node); file != node {
		t.sizes.send(file, size)
	}
	if size == old {
		return
	}
	if size > old {
		t.fuse.InodeNotifyStoreCache(node, size-1, b[size-1:])
	}
	t.fuse.InodeNotify(node, -1, 0)
}
