package fs

import (
	"slices"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

func (t tree) OpenDir(stop interrupt, in *fuse.OpenIn, out *fuse.OpenOut) status {
	r, code := t.request(stop, &in.InHeader)
	if !code.Ok() {
		return code
	}
	h := &opened{node: r.node}
	var err error
	if h.share, err = t.newShare(r.uid); err == nil {
		err = h.list(r)
	}
	if err != nil {
		t.release(h)
		return t.overdrawn(r, err)
	}
	if r.file.kind == hidden {
		// It never lists anything, so the kernel may answer later reads of it.
		out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	}
	out.Fh = t.handles.add(h)
	return fuse.OK
}

// list keeps the names of a directory as this reader sees them now.
func (h *opened) list(r *request) error {
	h.entries = r.entries()
	err := h.share.Hold(int64(cap(h.entries)) * int64(unsafe.Sizeof(entry{})))
	if err != nil {
		h.entries = nil
	}
	return err
}

// entry is a name in a directory.
type entry struct {
	dirent // of a varying name; else with the name only
	file   *file
}

// entries returns the names that a directory lists. They are not changed.
func (r *request) entries() []entry {
	if r.file.kind != dir {
		return nil
	}
	if r.file.names == nil {
		if guest := r.file.guestRoot; guest != nil && fsListed(r.snap()) {
			return append(slices.Clip(r.file.listed), entry{dirent{name: guest.name}, guest})
		}
		return r.file.listed
	}
	list := r.file.names.list(r)
	entries := make([]entry, len(list))
	for i, d := range list {
		entries[i] = entry{d, &r.file.names.each}
	}
	return entries
}

// rewound returns the names for a read of a directory: those of its open, or those of its last read
// from the beginning, since rewinddir(3) asks for what is there now.
func (h *opened) rewound(r *request, offset uint64) ([]entry, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if offset == 0 && h.begun {
		if err := h.list(r); err != nil {
			return nil, err
		}
	}
	h.begun = true
	return h.entries, nil
}

func (t tree) ReadDir(stop interrupt, in *fuse.ReadIn, out *fuse.DirEntryList) status {
	return t.readDir(stop, in, func(_ *request, e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

func (t tree) ReadDirPlus(stop interrupt, in *fuse.ReadIn, out *fuse.DirEntryList) status {
	return t.readDir(stop, in, func(r *request, e fuse.DirEntry) bool {
		looked := out.AddDirLookupEntry(e)
		if looked != nil && r != nil && attrValid(r.file) != notKept {
			t.entry(r, looked)
		}
		return looked != nil
	})
}

// readDir adds entries from the offset on until add refuses one. add gets the request for the
// entry, or nil. An entry without attributes, or whose attributes the kernel may not keep, is a
// name that the kernel looks up on demand.
func (t tree) readDir(stop interrupt, in *fuse.ReadIn,
	add func(*request, fuse.DirEntry) bool) status {
	h := t.handles.get(in.Fh, in.NodeId)
	if h == nil {
		return fuse.EBADF
	}
	r, code := t.request(stop, &in.InHeader)
	if !code.Ok() {
		return fuse.OK // the directory was removed and is empty
	}
	entries, err := h.rewound(r, in.Offset)
	if err != nil {
		return t.overdrawn(r, err)
	}
	var c request
	for i := in.Offset; i < uint64(len(entries))+2; i++ {
		d := fuse.DirEntry{Name: [2]string{".", ".."}[i&1], Mode: syscall.S_IFDIR}
		d.Ino, d.Off = in.NodeId, i+1
		known := false
		if i >= 2 {
			e := &entries[i-2]
			c, known = r.at(e)
			d.Name, d.Mode, d.Ino = e.name, e.file.fileType(), c.node
			// A VM that was renamed since the open is looked up.
			known = known && (r.vm != nil || c.vm == nil || c.snap().Name == e.name)
		}
		looked := &c
		if !known {
			looked = nil
		}
		if !add(looked, d) {
			break
		}
	}
	return fuse.OK
}

func (t tree) ReleaseDir(in *fuse.ReleaseIn) { t.Release(nil, in) }
