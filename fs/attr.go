package fs

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm"
)

const (
	firstSize   = 4096 // st_size of a generated file before its first open, as in sysfs
	attrSeconds = 1    // that the kernel may keep names and attributes
)

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
		out.Mode = f.fileType() | modeFor(f, snap.Owner)
		changed, created = snap.Created, snap.Created
		if t, ok := snap.Changed.Of(strings.TrimSuffix(f.name, ".json")); ok {
			changed = t
		}
		if used := r.vm.Touched(); f.name == "touched" && used.After(changed) {
			changed = used // a use publishes no snapshot
		}
		if f == snapshotRow {
			if d := r.snapshot(); d != nil {
				changed, created = d.Created, d.Created
			}
		}
		if r.session != nil {
			out.Mode = f.fileType() | f.mode
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
	if r.vm == nil && (f == vmsRow || f == imagesRow || f.writable()) {
		if s.o.Group >= 0 {
			out.Gid = uint32(s.o.Group)
		} else {
			out.Mode &^= 0o020 // it would be everybody's whose group is the owner's
		}
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

// modeFor returns the permission bits of a VM's file: where the VM's directory may be written by a
// class of users, these have the owner's bits, and otherwise none that change anything.
func modeFor(f *file, o vmm.Owner) uint32 {
	if f == vmRow {
		return o.Mode & 0o7777
	}
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
	asked := in.SetAttrInCommon // it is the kernel's after the request
	name, uid, root := r.snap().Name, r.uid, r.isRoot()
	change := func(o vmm.Owner) (vmm.Owner, error) {
		if !root && (uid != o.UID || asked.Valid&fuse.FATTR_UID != 0 && asked.Uid != o.UID) {
			return o, fmt.Errorf("cannot change whose %s is: %w", name, vmm.ErrNotPermitted)
		}
		if asked.Valid&fuse.FATTR_UID != 0 {
			o.UID = asked.Uid
		}
		if asked.Valid&fuse.FATTR_GID != 0 {
			o.GID = asked.Gid
		}
		if asked.Valid&fuse.FATTR_MODE != 0 {
			o.Mode = asked.Mode & 0o7777
		}
		return o, nil
	}
	defer r.blocking()()
	return r.detached(func(ctx context.Context) error { return r.vm.Chown(ctx, change) })
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
