package fs

import (
	"fmt"
	"log/slog"
	"slices"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm"
)

const maxRefusals = 1024 // uids whose last refusal is kept

// whose is the name of what a file belongs to.
func (r *request) whose() string {
	switch {
	case r.vm != nil:
		return r.snap().Name
	case r.image != 0:
		i, _ := r.server.o.Images.Info(r.image)
		return "image " + i.Name
	}
	return "the host"
}

// fail keeps the sentence of a refused command in the `error` of the VM or the image.
func (s raw) fail(r *request, err error) {
	code := errno(err)
	switch code {
	case fuse.Status(syscall.EINTR), fuse.EAGAIN, fuse.Status(syscall.EPIPE):
		return // the command goes on, or is to be given again; or takes no more input, as it may
	}
	s.o.Log.Log(r.ctx, level(err, slog.LevelInfo), "refused", "vm", r.whose(), "file", r.file.name, "uid", r.uid, "err", err)
	s.failed(r, err)
}

// failed keeps the sentence, nil for none, where who wrote looks for it.
func (s *Server) failed(r *request, err error) {
	switch {
	case r.vm != nil:
		r.vm.Fail(err)
	case r.image != 0:
		s.o.Images.Refuse(r.image, err)
	case err != nil:
		s.keepRefusal(r.uid, err)
	}
}

// refused keeps the sentence for who was refused, of the most recent uids, and gives the errno.
func (s *Server) refused(uid uint32, err error) fuse.Status {
	code := errno(err)
	if code == fuse.Status(syscall.EINTR) {
		return code // what was begun goes on
	}
	s.o.Log.Log(s.ctx, level(err, slog.LevelInfo), "refused", "uid", uid, "err", err)
	s.keepRefusal(uid, err)
	return code
}

func (s *Server) keepRefusal(uid uint32, err error) {
	s.refusalsMu.Lock()
	defer s.refusalsMu.Unlock()
	s.lastUIDs = append(slices.DeleteFunc(s.lastUIDs, func(u uint32) bool { return u == uid }), uid)
	if len(s.lastUIDs) > maxRefusals {
		delete(s.refusals, s.lastUIDs[0])
		s.lastUIDs = slices.Delete(s.lastUIDs, 0, 1)
	}
	s.refusals[uid] = fmt.Sprint(err)
}

// refusedVM is refused for what was asked of a VM, whose `error` says it too; v is nil if there is none of that name.
func (s *Server) refusedVM(uid uint32, v *vmm.VM, err error) fuse.Status {
	code := s.refused(uid, err)
	if v != nil && code != fuse.Status(syscall.EINTR) {
		v.Fail(err)
	}
	return code
}
