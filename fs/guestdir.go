package fs

import (
	"context"
	"io"
	"sync"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm/guest/sftp"
)

// guestDir is an open directory of a guest. What is kept of it is what the guest said last.
type guestDir struct {
	mu     sync.Mutex // guards what follows; held while the guest is asked, as the kernel reads a directory once at a time
	handle *sftp.Handle
	opens  *guestSession
	names  []sftp.Name
	first  uint64 // which of all names the first is
	ended  bool
	bytes  int64 // that names take
}

func (d *guestDir) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dropLocked()
}

func (d *guestDir) dropLocked() {
	if d.handle != nil {
		d.handle.Close()
		d.opens.opens.Add(-1)
	}
	d.handle, d.opens, d.names, d.first, d.ended, d.bytes = nil, nil, nil, 0, false, 0
}

// at gives the names from that one on, none at the end. Who goes back, or has lost the session, begins again.
func (d *guestDir) at(ctx context.Context, g *guestSession, path string, i uint64) ([]sftp.Name, error) {
	if d.handle != nil && (i < d.first || d.opens != g) {
		d.dropLocked()
	}
	if d.handle == nil {
		h, err := g.client.OpenDir(ctx, path)
		if err != nil {
			return nil, err
		}
		g.opens.Add(1)
		d.handle, d.opens = h, g
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
		if d.first+uint64(len(names)) > maxGuestNames {
			return nil, errManyNames
		}
	}
	return d.names[min(uint64(len(d.names)), i-d.first):], nil
}

func (s guestFS) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	r, _, path, code := s.at(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	d := new(guestDir)
	h := &opened{guestDir: d}
	var err error
	if h.allowance, err = s.allowances.file(r); err != nil {
		return s.overdrawn(r, err)
	}
	code = s.ask(r, guestWait, func(ctx context.Context, g *guestSession) error {
		_, err := d.at(ctx, g, path, 0)
		return err
	})
	if code.Ok() {
		if err = h.holds(d.bytes); err != nil {
			code = s.overdrawn(r, err)
		}
	}
	if !code.Ok() {
		d.close()
		h.letAllowance()
		return code
	}
	out.Fh = s.handles.add(h)
	return fuse.OK
}

func (s guestFS) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readDir(cancel, in, func(_ *request, _ *guestNode, e fuse.DirEntry, _ *sftp.Attr) bool { return out.AddDirEntry(e) })
}

func (s guestFS) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readDir(cancel, in, func(r *request, dir *guestNode, e fuse.DirEntry, a *sftp.Attr) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && a != nil {
			s.entry(r, dir, e.Name, *a, entry) // what fails stays a name without a node, which the kernel looks up
		}
		return entry != nil
	})
}

// readDir adds names from the offset on until add refuses one, or the guest would have to be asked again.
func (s guestFS) readDir(cancel <-chan struct{}, in *fuse.ReadIn, add func(*request, *guestNode, fuse.DirEntry, *sftp.Attr) bool) fuse.Status {
	r, n, code := s.request(cancel, &in.InHeader)
	if !code.Ok() {
		return code
	}
	h := s.handles.get(in.Fh)
	if h == nil || h.guestDir == nil {
		return fuse.EBADF
	}
	path, err := s.guestNodes.path(n)
	if err != nil {
		return errno(err)
	}
	i := in.Offset
	for ; i < 2; i++ {
		if !add(r, n, fuse.DirEntry{Name: [2]string{".", ".."}[i], Mode: syscall.S_IFDIR, Ino: n.id, Off: i + 1}, nil) {
			return fuse.OK
		}
	}
	d := h.guestDir
	d.mu.Lock()
	defer d.mu.Unlock()
	if in.Offset == 0 && d.first > 0 || i-2 < d.first {
		d.dropLocked()
	}
	var names []sftp.Name
	code = s.ask(r, guestWait, func(ctx context.Context, g *guestSession) (err error) {
		names, err = d.at(ctx, g, path, i-2)
		return err
	})
	if !code.Ok() {
		return code
	}
	if err := h.holds(d.bytes); err != nil {
		d.dropLocked()
		return s.overdrawn(r, err)
	}
	for j := range names {
		name := &names[j]
		i++
		a, ok := shown(name.Attr)
		if !ok {
			continue
		}
		if !add(r, n, fuse.DirEntry{Name: name.Name, Mode: a.Mode, Off: i}, &name.Attr) {
			break
		}
	}
	return fuse.OK
}
