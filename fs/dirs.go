package fs

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm"
)

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
	may := r.mayDelete()
	if err := r.detached(func(ctx context.Context) error { return s.o.Manager.Rename(ctx, from, to, may) }); err != nil {
		return s.refusedVM(r.uid, v, err)
	}
	return fuse.OK
}

func (s raw) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	r, code := s.request(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	h := new(opened)
	var err error
	if h.share, err = s.newShare(r.uid); err == nil {
		h.entries = s.entries(r)
		err = h.share.Hold(entriesBytes(h.entries))
	}
	if err != nil {
		s.letGo(h)
		return s.overdrawn(r, err)
	}
	out.Fh = s.handles.add(h)
	return fuse.OK
}

// rewound gives the names for a read of a directory: those of its open or, since who reads from the beginning
// again wants what is there now (rewinddir(3)), of the last such read.
func (s raw) rewound(cancel <-chan struct{}, in *fuse.ReadIn, h *opened) ([]entry, fuse.Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if in.Offset == 0 && h.begun {
		h.entries = nil
		if r, code := s.request(cancel, &in.InHeader); code.Ok() { // not one of a VM that was removed
			h.entries = s.entries(r)
			if err := h.share.Hold(entriesBytes(h.entries)); err != nil {
				h.entries = nil
				return nil, s.overdrawn(r, err)
			}
		}
	}
	h.begun = true
	return h.entries, fuse.OK
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
	return s.readDir(cancel, in, func(e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

func (s raw) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readDir(cancel, in, func(e fuse.DirEntry) bool {
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
}

// lasting reports whether the kernel may keep what it is told of a node. Of others, which it would ask for again, a listing gives the name only.
func lasting(node uint64) bool {
	_, row, _ := splitID(node)
	return rows[row].size == nil && !rows[row].writable()
}

// readDir adds entries from the offset on until add refuses one. Offsets count from 1, `.` and `..` being the first two.
func (s raw) readDir(cancel <-chan struct{}, in *fuse.ReadIn, add func(fuse.DirEntry) bool) fuse.Status {
	h := s.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	entries, code := s.rewound(cancel, in, h)
	if !code.Ok() {
		return code
	}
	for i := in.Offset; i < uint64(len(entries))+2; i++ {
		e := fuse.DirEntry{Name: [2]string{".", ".."}[i&1], Mode: syscall.S_IFDIR, Ino: in.NodeId, Off: i + 1}
		if i >= 2 {
			named := entries[i-2]
			e.Name, e.Mode = named.name, rows[named.row].fileType()
			e.Ino = nodeID(named.serial, named.row, named.param)
		}
		if !add(e) {
			break
		}
	}
	return fuse.OK
}

func (s raw) ReleaseDir(in *fuse.ReleaseIn) {
	if h := s.handles.drop(in.Fh); h != nil {
		s.letGo(h)
	}
}

func (s raw) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// entriesBytes returns the memory of a directory's names, without the names, which the VMs have.
func entriesBytes(entries []entry) int64 {
	return int64(cap(entries)) * int64(unsafe.Sizeof(entry{}))
}
