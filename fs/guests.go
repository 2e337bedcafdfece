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
	serial, row, param := splitID(node)
	return serial, row != nil && row.kind == guestRoot && param == 0
}

func (m guestMount) Begin(stop interrupt, c fuse.Caller) (context.Context, func()) {
	call := m.newCall(stop, c)
	end := call.blocking()
	return call.ctx, end
}

func (m guestMount) Count(uid uint32) (guestfs.Share, error) { return m.newShare(uid) }

func (m guestMount) Overdrawn(uid uint32, err error) status {
	r := &request{call: call{ctx: m.ctx, uid: uid}, file: &file{name: "fs"}}
	return m.overdrawn(r, err)
}

func (m guestMount) Failed(v *vmm.VM, err error) status {
	level := level(err, slog.LevelDebug)
	m.o.Log.Log(m.ctx, level, "cannot use a file of the guest", "vm", v.Snapshot().Name, "err", err)
	return status(errno(err))
}

func (m guestMount) Status(err error) status { return status(errno(err)) }
