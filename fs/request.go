package fs

import (
	"context"
	"errors"
	"time"

	"banger/vmm"
)

// call is the system call behind a request.
type call struct {
	server   *Server
	ctx      context.Context // ends with the call
	uid, gid uint32
	pid      uint32
	nonblock bool
}

// request is a call for the file or directory that a node stands for.
type request struct {
	call
	node    uint64
	file    *file
	vm      *vmm.VM  // nil above vms/NAME
	image   uint64   // number of the image, 0 above images/NAME
	quota   uint64   // serial of a directory in quota/, 0 above it
	session *session // nil above exec/N
	param   uint16   // of the node
}

// openRequest opens a file.
type openRequest struct {
	request
	readWrite bool
}

// writeRequest is one write(2).
type writeRequest struct {
	request
	handle handle      // what the open returned for reading, nil if nothing
	opener *keptCaller // of a row that stores paths
	holder *holder     // of a row that holds VMs
	more   bool        // it continues an earlier write of its open, or appends
}

func (r *request) snap() *vmm.Snapshot { return r.vm.Snapshot() }

// resolve finds the row of a node and what it belongs to; false for what has been removed.
func (c *call) resolve(node uint64) (*request, bool) {
	r := &request{call: *c, node: node}
	if node == rootID {
		r.file = rows[0]
		return r, true
	}
	var serial uint64
	serial, r.file, r.param = splitID(node)
	return r, r.file != nil && r.locate(serial)
}

// locate finds the owner of a serial; false for one that has been removed, and for one of a kind
// that the row does not have.
func (r *request) locate(serial uint64) bool {
	switch {
	case serial&imageBit != 0:
		r.image = serial &^ imageBit
		_, ok := r.server.o.Images.Info(r.image)
		return ok && r.file.owner == ofImage
	case serial&sessionBit != 0:
		if r.session = r.server.sessions.get(serial); r.session == nil {
			return false
		}
		r.vm = r.server.o.Manager.BySerial(r.session.vm.Serial())
		return r.vm != nil && r.file.owner == ofSession
	case serial&quotaBit != 0:
		r.quota = serial
		uid := serial &^ quotaBit
		return (uid < noUID || serial == defaultQuota) && r.file.owner == ofQuota
	case serial != 0:
		r.vm = r.server.o.Manager.BySerial(serial)
		return r.vm != nil && r.file.owner == ofVM
	}
	return r.file.owner == ofTop
}

// child returns the request for a name in the directory; false if there is none.
func (r *request) child(name string) (*request, bool) {
	e := entry{file: r.file.child(name)}
	if e.file == nil {
		if r.file.names == nil {
			return nil, false
		}
		var ok bool
		if e.dirent, ok = r.file.names.find(r, name); !ok {
			return nil, false
		}
		e.file = &r.file.names.each
	}
	c, ok := r.at(&e)
	return &c, ok
}

// at returns the request for an entry of the directory; false if it was removed. A file with a
// fixed name has the owner and the parameter of its directory.
func (r *request) at(e *entry) (c request, ok bool) {
	c, ok = *r, true
	c.file = e.file
	serial := r.serial()
	if e.serial != 0 {
		c.param = e.param
		if e.serial != serial {
			serial, ok = e.serial, c.locate(e.serial)
		}
	} else if r.node == rootID {
		c.param = 0
	}
	c.node = nodeID(serial, e.file.number, c.param)
	return c, ok
}

// serial returns the serial in the node numbers of a request's owner.
func (r *request) serial() uint64 {
	switch {
	case r.session != nil:
		return r.session.serial
	case r.vm != nil:
		return r.vm.Serial()
	case r.image != 0:
		return imageBit | r.image
	}
	return r.quota
}

// detached runs f, which waits for a disk. When the call ends first, its caller is free at once and
// f goes on: a disk may answer late or never. f must not use the kernel's request.
func (c *call) detached(f func(context.Context) error) error {
	done := make(chan error, 1)
	c.server.changes.Go(func() { done <- f(context.WithoutCancel(c.ctx)) })
	select {
	case err := <-done:
		return err
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

// brief is how long a nonblocking call waits for data that may be there at once.
const brief = time.Millisecond

// patience returns the context of a call that must not block when the file was opened O_NONBLOCK.
func (c *call) patience() (context.Context, context.CancelFunc) {
	if c.nonblock {
		return context.WithTimeout(c.ctx, brief)
	}
	return c.ctx, func() {}
}

// again turns the end of that patience into EAGAIN.
func (c *call) again(err error) error {
	if c.nonblock && errors.Is(err, context.DeadlineExceeded) {
		return errAgain
	}
	return err
}
