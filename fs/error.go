package fs

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/vmm"
)

// maxRefusals bounds the uids whose last refusal is kept.
const maxRefusals = 1024

// refusals keeps the sentence of the last refusal of each of the most recent uids.
type refusals struct {
	last map[uint32]string
	uids []uint32 // of last, the least recent first
}

func (t *refusals) keep(uid uint32, err error) {
	t.uids = append(slices.DeleteFunc(t.uids, func(u uint32) bool { return u == uid }), uid)
	if len(t.uids) > maxRefusals {
		delete(t.last, t.uids[0])
		t.uids = slices.Delete(t.uids, 0, 1)
	}
	t.last[uid] = fmt.Sprint(err)
}

func (s *Server) keepRefusal(uid uint32, err error) {
	s.refusalsMu.Lock()
	defer s.refusalsMu.Unlock()
	s.refusals.keep(uid, err)
}

func topErrorShow(r *request) ([]byte, error) {
	r.server.refusalsMu.Lock()
	defer r.server.refusalsMu.Unlock()
	return line(sentence(r.server.refusals.last[r.uid]))
}

func errorText(s *vmm.Snapshot) string { return sentence(s.Error) }

// owner names what a file belongs to, for messages.
func (r *request) owner() string {
	switch {
	case r.vm != nil:
		return r.snap().Name
	case r.image != 0:
		i, _ := r.server.o.Images.Info(r.image)
		return "image " + i.Name
	case r.quota == defaultQuota:
		return "quota/" + defaultWord
	case r.quota != 0:
		return fmt.Sprintf("quota/%d", r.quotaUID())
	}
	return "the host"
}

// failed logs a refused write, keeps its sentence in an `error` and returns its status.
func (s *Server) failed(r *request, err error) fuse.Status {
	code := errno(err)
	switch code {
	case syscall.EINTR, syscall.EAGAIN, syscall.EPIPE:
		// The command goes on, is to be repeated, or reads no more input, as it may.
		return fuse.Status(code)
	}
	s.o.Log.Log(r.ctx, level(err, slog.LevelInfo), "refused",
		"vm", r.owner(), "file", r.file.name, "uid", r.uid, "err", err)
	s.setError(r, err)
	return fuse.Status(code)
}

// setError keeps a sentence, or none for nil, in the `error` where the writer finds it.
func (s *Server) setError(r *request, err error) {
	switch {
	case r.vm != nil:
		r.vm.Fail(err)
	case r.image != 0:
		s.o.Images.Refuse(r.image, err)
	case err != nil:
		s.keepRefusal(r.uid, err)
	}
}

// refused logs the refusal of a mkdir, rmdir or mv, keeps its sentence for the uid and for the VM,
// if there is one, and returns its status.
func (s *Server) refused(uid uint32, v *vmm.VM, err error) fuse.Status {
	code := errno(err)
	if code == syscall.EINTR {
		return fuse.Status(code) // the change goes on
	}
	s.o.Log.Log(s.ctx, level(err, slog.LevelInfo), "refused", "uid", uid, "err", err)
	s.keepRefusal(uid, err)
	if v != nil {
		v.Fail(err)
	}
	return fuse.Status(code)
}

// unread logs the error of a read and returns its status.
func (s *Server) unread(r *request, err error) fuse.Status {
	name := ""
	if r.vm != nil {
		name = r.snap().Name
	}
	s.o.Log.Log(r.ctx, level(err, slog.LevelDebug), "cannot read",
		"vm", name, "file", r.file.name, "err", err)
	return fuse.Status(errno(err))
}

// overdrawn is unread for an open or read that may exceed its user's allowance. The top `error`
// then has the sentence.
func (s *Server) overdrawn(r *request, err error) fuse.Status {
	if errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("cannot open more: %w", err)
		s.keepRefusal(r.uid, err)
	}
	return s.unread(r, err)
}

// level returns the level of the log line about an error: the usual one, unless only the log
// explains the error. A wait for what can no longer happen ends with an error that was logged where
// it arose.
func level(err error, usual slog.Level) slog.Level {
	if errno(err) == syscall.EIO && !errors.Is(err, vmm.ErrGone) {
		return slog.LevelError
	}
	return usual
}
