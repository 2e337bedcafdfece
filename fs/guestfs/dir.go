package guestfs

import (
	"context"
	"io"
	"sync"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm/guest/sftp"
)

// dir is an open directory of a guest. It keeps the names of the guest's last reply.
type dir struct {
	// mu guards what follows. A request to the guest holds it: the kernel reads an open
	// directory once at a time.
	mu      sync.Mutex
	handle  *sftp.Handle
	session *session
	names   []sftp.Name
	first   uint64 // index of names[0] among all names
	ended   bool
	begun   bool  // names were read from the beginning
	bytes   int64 // that names need
}

func (d *dir) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dropLocked()
}

func (d *dir) dropLocked() {
	if d.handle != nil {
		d.handle.Close()
		d.session.opens.Add(-1)
	}
	d.handle, d.session, d.names, d.first, d.ended, d.bytes = nil, nil, nil, 0, false, 0
}

// from returns the names from index i on, none at the end. A reader that goes back, or whose
// session ended, begins anew.
func (d *dir) from(ctx context.Context, g *session, path string, i uint64) ([]sftp.Name, error) {
	if d.handle != nil && (i < d.first || d.session != g) {
		d.dropLocked()
	}
	if d.handle == nil {
		h, err := g.client.OpenDir(ctx, path)
		if err != nil {
			return nil, err
		}
		g.opens.Add(1)
		d.handle, d.session = h, g
	}
	for i >= d.first+uint64(len(d.names)) && !d.ended {
		names, err := d.handle.ReadDir(ctx)
		if err == io.EOF {
			d.ended = true
			break
		}
		if err != nil {
			return nil, err
		}
		d.first += uint64(len(d.names))
		d.names, d.bytes = names, int64(cap(names))*int64(unsafe.Sizeof(sftp.Name{}))
		for i := range names {
			d.bytes += int64(len(names[i].Name))
		}
		if d.first+uint64(len(names)) > maxNames {
			return nil, errManyNames
		}
	}
	return d.names[min(uint64(len(d.names)), i-d.first):], nil
}

func (s *FS) OpenDir(stop interrupt, in *fuse.OpenIn, out *fuse.OpenOut) status {
	r, code := s.pathRequest(stop, &in.InHeader)
	if !code.Ok() {
		return code
	}
	share, err := s.mount.Count(in.Uid)
	if err != nil {
		return s.mount.Overdrawn(in.Uid, err)
	}
	d := new(dir)
	code = r.ask(askWait, func(ctx context.Context, g *session) error {
		_, err := d.from(ctx, g, r.path, 0)
		return err
	})
	if code.Ok() {
		if err = share.Hold(d.bytes); err != nil {
			code = s.mount.Overdrawn(in.Uid, err)
		}
	}
	if !code.Ok() {
		d.close()
		share.Release()
		return code
	}
	out.Fh = s.add(&opened{node: in.NodeId, dir: d, share: share})
	return fuse.OK
}

func (s *FS) ReadDir(stop interrupt, in *fuse.ReadIn, out *fuse.DirEntryList) status {
	return s.readDir(stop, in, func(_ *request, e fuse.DirEntry, _ *sftp.Attr) bool {
		return out.AddDirEntry(e)
	})
}

func (s *FS) ReadDirPlus(stop interrupt, in *fuse.ReadIn, out *fuse.DirEntryList) status {
	return s.readDir(stop, in, func(r *request, e fuse.DirEntry, a *sftp.Attr) bool {
		looked := out.AddDirLookupEntry(e)
		if looked != nil && a != nil {
			r.entry(e.Name, *a, looked) // after an error the kernel looks the name up
		}
		return looked != nil
	})
}

// readDir adds names from the offset on until add refuses one, or the kept names end.
func (s *FS) readDir(stop interrupt, in *fuse.ReadIn,
	add func(*request, fuse.DirEntry, *sftp.Attr) bool) status {
	r, code := s.pathRequest(stop, &in.InHeader)
	if !code.Ok() {
		return code
	}
	h := s.byHandle(in.Fh, in.NodeId)
	if h.dir == nil {
		return fuse.EBADF
	}
	i := in.Offset
	for ; i < 2; i++ {
		e := fuse.DirEntry{
			Name: [2]string{".", ".."}[i], Mode: syscall.S_IFDIR, Ino: r.node.id, Off: i + 1,
		}
		if !add(r, e, nil) {
			return fuse.OK
		}
	}
	d := h.dir
	d.mu.Lock()
	defer d.mu.Unlock()
	// rewinddir(3) asks for what is there now.
	if in.Offset == 0 && d.begun || i-2 < d.first {
		d.dropLocked()
	}
	d.begun = d.begun || in.Offset == 0
	var names []sftp.Name
	code = r.ask(askWait, func(ctx context.Context, g *session) (err error) {
		names, err = d.from(ctx, g, r.path, i-2)
		return err
	})
	if !code.Ok() {
		return code
	}
	if err := h.share.Hold(d.bytes); err != nil {
		d.dropLocked()
		return s.mount.Overdrawn(in.Uid, err)
	}
	for j := range names {
		name := &names[j]
		i++
		a, ok := shown(name.Attr)
		if !ok {
			continue
		}
		if !add(r, fuse.DirEntry{Name: name.Name, Mode: a.Mode, Off: i}, &name.Attr) {
			break
		}
	}
	return fuse.OK
}
