package fs

import (
	"context"
	"log/slog"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/fs/guestfs"
	"banger/vmm"
)

// fsListed reports whether the directory of a VM lists `fs`.
func fsListed(s *vmm.Snapshot) bool { return s.Config.ExposeFS && s.State == vmm.Running }

// guestMount is the tree as package guestfs sees it.
type guestMount struct{ *Server }

func (m guestMount) VM(serial uint64) *vmm.VM { return m.o.Manager.BySerial(serial) }

func (m guestMount) Root(node uint64) (serial uint64, ok bool) {
	if guestfs.IsFile(node) {
		return 0, false
	}
	serial, row, _ := splitID(node)
	return serial, int(row) < len(rows) && rows[row] == fsRow
}

func (m guestMount) Begin(cancel <-chan struct{}, c fuse.Caller) (context.Context, func()) {
	r := &request{server: m.Server, ctx: &fuse.Context{Caller: c, Cancel: cancel}, pid: c.Pid}
	stop := r.blocking()
	return r.ctx, stop
}

func (m guestMount) Count(uid uint32) (guestfs.Share, error) { return m.newShare(uid) }

func (m guestMount) Overdrawn(uid uint32, err error) fuse.Status {
	return m.overdrawn(&request{ctx: m.ctx, uid: uid}, err)
}

func (m guestMount) Failed(v *vmm.VM, err error) fuse.Status {
	level := level(err, slog.LevelDebug)
	m.o.Log.Log(m.ctx, level, "cannot use a file of the guest", "vm", v.Snapshot().Name, "err", err)
	return errno(err)
}

func (m guestMount) Status(err error) fuse.Status { return errno(err) }
