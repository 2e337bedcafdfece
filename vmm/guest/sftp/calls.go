package sftp

import (
	"context"
	"encoding/binary"
	"io"
	"strings"
	"syscall"
)

// status makes a call that is answered by a status alone.
func (c *Client) status(ctx context.Context, kind byte, body []byte) error {
	k, err := c.begin(ctx, kind, nil, body)
	if err != nil {
		return err
	}
	return c.waitStatus(ctx, k)
}

func (c *Client) waitStatus(ctx context.Context, k *call) error {
	d, err := c.wait(ctx, k, kindStatus)
	if err != nil {
		return err
	}
	if err = statusError(&d); d.bad {
		return c.broken()
	}
	if err == io.EOF {
		return syscall.EIO
	}
	return err
}

// Stat begins to read the attributes of a path, without following symbolic links. The function that
// it returns waits for the answer. The server serves requests in the order of begin.
func (c *Client) Stat(ctx context.Context, path string) func() (Attr, error) {
	k, err := c.begin(ctx, kindLstat, nil, appendString(nil, path))
	return func() (a Attr, _ error) {
		if err != nil {
			return a, err
		}
		d, err := c.wait(ctx, k, kindAttrs)
		if err != nil {
			return a, notEOF(err)
		}
		if a = d.attr(); d.bad {
			return a, c.broken()
		}
		return a, nil
	}
}

// notEOF turns io.EOF into EIO, for calls that have no end.
func notEOF(err error) error {
	if err == io.EOF {
		return syscall.EIO
	}
	return err
}

// Set begins to change a file, without following symbolic links. The function that it returns
// waits, and returns the new attributes.
func (c *Client) Set(ctx context.Context, path string, change Change) func() (Attr, error) {
	body := appendChange(appendString(nil, path), change, extAttrs)
	k, err := c.begin(ctx, kindSetstat, nil, body)
	return func() (a Attr, _ error) {
		if err != nil {
			return a, err
		}
		r, err := c.answer(ctx, k)
		switch {
		case err != nil:
			return a, err
		case r.kind == kindAttrs:
			a = r.d.attr()
		case r.kind == kindStatus:
			err = statusError(&r.d)
			if err == nil && !r.d.bad { // the server does not know extAttrs
				return c.Stat(ctx, path)()
			}
		default:
			err = c.broken()
		}
		if r.d.bad {
			err = c.broken()
		}
		return a, notEOF(err)
	}
}

// later begins a call that is answered by a status alone.
func (c *Client) later(ctx context.Context, kind byte, body []byte) func() error {
	k, err := c.begin(ctx, kind, nil, body)
	return func() error {
		if err != nil {
			return err
		}
		return c.waitStatus(ctx, k)
	}
}

// Mkdir begins to make a directory, of mode 0755.
func (c *Client) Mkdir(ctx context.Context, path string) func() error {
	return c.later(ctx, kindMkdir, appendChange(appendString(nil, path), unchanged))
}

// Symlink begins to make a symbolic link.
func (c *Client) Symlink(ctx context.Context, target, path string) func() error {
	// In OpenSSH's order, not the draft's.
	return c.later(ctx, kindSymlink, appendString(appendString(nil, target), path))
}

// Link begins to make a hard link.
func (c *Client) Link(ctx context.Context, old, path string) func() error {
	body := appendString(appendString(appendString(nil, hardLink), old), path)
	return c.later(ctx, kindExtended, body)
}

// Rmdir removes an empty directory.
func (c *Client) Rmdir(ctx context.Context, path string) error {
	return c.status(ctx, kindRmdir, appendString(nil, path))
}

// Remove removes anything but a directory.
func (c *Client) Remove(ctx context.Context, path string) error {
	return c.status(ctx, kindRemove, appendString(nil, path))
}

// Rename renames a file or directory. If the new name exists, it is replaced or the error is
// EEXIST.
func (c *Client) Rename(ctx context.Context, old, path string, replace bool) error {
	body := appendString(appendString(nil, old), path)
	if replace {
		return c.status(ctx, kindExtended, append(appendString(nil, posixRename), body...))
	}
	return c.status(ctx, kindRename, body)
}

// Readlink returns the target of a symbolic link.
func (c *Client) Readlink(ctx context.Context, path string) (string, error) {
	k, err := c.begin(ctx, kindReadlink, nil, appendString(nil, path))
	if err != nil {
		return "", err
	}
	d, err := c.wait(ctx, k, kindName)
	if err != nil {
		return "", notEOF(err)
	}
	count, target := d.u32(), d.text()
	if d.bad || count != 1 {
		return "", c.broken()
	}
	if target == "" || len(target) > targetMost || strings.IndexByte(target, 0) >= 0 {
		return "", syscall.EIO
	}
	return target, nil
}

// StatVFS asks for the file system of a path.
func (c *Client) StatVFS(ctx context.Context, path string) (StatVFS, error) {
	var s StatVFS
	k, err := c.begin(ctx, kindExtended, nil, appendString(appendString(nil, statVFS), path))
	if err != nil {
		return s, err
	}
	d, err := c.wait(ctx, k, kindReply)
	if err != nil {
		return s, notEOF(err)
	}
	for _, n := range s.fields() {
		*n = d.u64()
	}
	if d.bad {
		return s, c.broken()
	}
	return s, nil
}

// Handle is an open file or directory of a session.
type Handle struct {
	c  *Client
	id string
	// File and Dir are the attributes of the file and its directory after the open, if HasAttrs is
	// set.
	HasAttrs  bool
	File, Dir Attr
}

// Client returns the session of the handle.
func (h *Handle) Client() *Client { return h.c }

// Open begins to open a regular file. A new one gets the mode.
func (c *Client) Open(
	ctx context.Context, path string, flags, mode uint32,
) func() (*Handle, error) {
	change := unchanged
	change.Mode = &mode
	body := binary.BigEndian.AppendUint32(appendString(nil, path), flags)
	return c.handle(ctx, kindOpen, appendChange(body, change, extAttrs))
}

// OpenDir opens a directory.
func (c *Client) OpenDir(ctx context.Context, path string) (*Handle, error) {
	return c.handle(ctx, kindOpendir, appendString(nil, path))()
}

func (c *Client) handle(ctx context.Context, kind byte, body []byte) func() (*Handle, error) {
	k, err := c.begin(ctx, kind, c.closeLate, body)
	return func() (*Handle, error) {
		if err != nil {
			return nil, err
		}
		d, err := c.wait(ctx, k, kindHandle)
		if err != nil {
			return nil, notEOF(err)
		}
		h := &Handle{c: c, id: d.text()}
		if h.HasAttrs = len(d.b) > 0; h.HasAttrs {
			h.File, h.Dir = d.attr(), d.attr()
		}
		if d.bad || len(h.id) > handleMost {
			return nil, c.broken()
		}
		return h, nil
	}
}

// closeLate closes a handle whose opener has left.
func (c *Client) closeLate(r reply) {
	if r.kind == kindHandle {
		if id := r.d.text(); !r.d.bad && len(id) <= handleMost {
			(&Handle{c: c, id: id}).Close()
		}
	}
}

// Close asks the server to close the handle, and does not wait.
func (h *Handle) Close() {
	c := h.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.work.Go(func() { // ends when the request is sent, at the latest with the session
		k, err := c.begin(context.Background(), kindClose, nil, appendString(nil, h.id))
		if err == nil {
			c.leave(k)
		}
	})
}

// Read returns at most n bytes from off, and none at the end. It requests more than MaxData in
// parts, all at once.
func (h *Handle) Read(ctx context.Context, n int, off int64) ([]byte, error) {
	if n <= MaxData {
		return h.beginRead(ctx, n, off)()
	}
	var parts []func() ([]byte, error)
	for done := 0; done < n; done += MaxData {
		parts = append(parts, h.beginRead(ctx, min(n-done, MaxData), off+int64(done)))
	}
	all := make([]byte, 0, n)
	for i, part := range parts {
		data, err := part()
		if err != nil && i == 0 {
			return nil, err
		}
		all = append(all, data...)
		if err != nil || len(data) < MaxData {
			break // the next read returns the error
		}
	}
	return all, nil
}

// beginRead begins one read.
func (h *Handle) beginRead(ctx context.Context, n int, off int64) func() ([]byte, error) {
	c := h.c
	body := binary.BigEndian.AppendUint64(appendString(nil, h.id), uint64(off))
	k, err := c.begin(ctx, kindRead, nil, binary.BigEndian.AppendUint32(body, uint32(n)))
	return func() ([]byte, error) {
		if err != nil {
			return nil, err
		}
		d, err := c.wait(ctx, k, kindData)
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		data := d.bytes()
		if d.bad || len(data) > n {
			return nil, c.broken()
		}
		return data, nil
	}
}

// Write writes data at off, in parts if it is more than MaxData. It returns how much was written
// before an error, and keeps no reference to data.
func (h *Handle) Write(ctx context.Context, data []byte, off int64) (int, error) {
	var parts []func() error
	for done := 0; done < len(data); done += MaxData {
		part := data[done:min(len(data), done+MaxData)]
		body := make([]byte, 0, len(part)+handleMost+16)
		body = binary.BigEndian.AppendUint64(appendString(body, h.id), uint64(off)+uint64(done))
		body = binary.BigEndian.AppendUint32(body, uint32(len(part)))
		parts = append(parts, h.c.later(ctx, kindWrite, append(body, part...)))
	}
	for i, part := range parts {
		if err := part(); err != nil {
			return i * MaxData, err
		}
	}
	return len(data), nil
}

// Seek returns the next offset from off on that is data (SEEK_DATA of lseek(2)) or a hole
// (SEEK_HOLE). ENXIO after the last, EOPNOTSUPP from a server that does not know the request.
func (h *Handle) Seek(ctx context.Context, off int64, whence uint32) (int64, error) {
	c := h.c
	body := appendInts(appendString(appendString(nil, seekFile), h.id), off)
	k, err := c.begin(ctx, kindExtended, nil, binary.BigEndian.AppendUint32(body, whence))
	if err != nil {
		return 0, err
	}
	d, err := c.wait(ctx, k, kindReply)
	if err != nil {
		return 0, notEOF(err)
	}
	at := int64(d.u64())
	if d.bad || at < off {
		return 0, c.broken()
	}
	return at, nil
}

// ReadDir returns the next names, and io.EOF after the last. It leaves out impossible names, so
// that there may be none.
func (h *Handle) ReadDir(ctx context.Context) ([]Name, error) {
	c := h.c
	k, err := c.begin(ctx, kindReaddir, nil, appendString(nil, h.id))
	if err != nil {
		return nil, err
	}
	d, err := c.wait(ctx, k, kindName)
	if err != nil {
		return nil, err
	}
	var names []Name
	for n := d.u32(); n > 0 && !d.bad; n-- {
		name := d.text()
		d.bytes() // the row of `ls -l`
		if a := d.attr(); !d.bad && validName(name) {
			names = append(names, Name{name, a})
		}
	}
	if d.bad {
		return nil, c.broken()
	}
	return names, nil
}

func validName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= nameMost &&
		!strings.ContainsAny(name, "/\x00")
}
