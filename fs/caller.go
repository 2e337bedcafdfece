package fs

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"banger/vmm"

	"golang.org/x/sys/unix"
)

// maxCallers bounds the open files of one uid that keep directories of their callers open.
const maxCallers = 64

// keptCaller is a Caller that an open file keeps, and what was begun by a write to it.
type keptCaller struct {
	*vmm.Caller
	all   *slots
	users atomic.Int32
}

// use is one more user.
func (k *keptCaller) use() { k.users.Add(1) }

// release is one less; the last closes the Caller's files. It may be called of nil.
func (k *keptCaller) release() {
	if k == nil || k.users.Add(-1) > 0 {
		return
	}
	k.Root.Close() // of nil, too
	k.Dir.Close()
	k.all.release(uint64(k.UID))
}

// keptCaller returns the process that makes the request, for as long as the file is open that the
// request opens; the caller releases it.
func (r *request) keptCaller() (*keptCaller, error) {
	all := &r.server.callers
	if !all.acquire(uint64(r.uid)) {
		return nil, fmt.Errorf("cannot open %s of %s: uid %d has %d files open that take paths: close some: %w",
			r.file.name, r.whose(), r.uid, all.most, vmm.ErrBusy)
	}
	c, err := r.caller()
	if err != nil {
		all.release(uint64(r.uid))
		return nil, err
	}
	k := &keptCaller{Caller: c, all: all}
	k.use()
	return k, nil
}

// caller returns the process that makes the request. It must be called before anything frees that
// process, whose number another process could have then. Who calls it closes the Caller's files.
func (r *request) caller() (*vmm.Caller, error) {
	c := &vmm.Caller{UID: r.uid, GID: r.gid}
	if r.pid == 0 { // of another pid namespace
		return c, nil
	}
	var err error
	if c.Groups, err = r.groups(); err != nil {
		return nil, err
	}
	// Links that lead nowhere or may not be followed leave it unseen: what is named by them will be
	// refused.
	c.Root, _ = os.OpenFile(fmt.Sprintf("/proc/%d/root", r.pid), unix.O_PATH|syscall.O_DIRECTORY, 0)
	c.Dir, _ = os.OpenFile(fmt.Sprintf("/proc/%d/cwd", r.pid), unix.O_PATH|syscall.O_DIRECTORY, 0)
	return c, nil
}

// groups returns the supplementary groups of the thread that makes the request; none if it cannot
// be seen.
func (r *request) groups() ([]uint32, error) {
	if r.pid == 0 {
		return nil, nil
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.pid))
	if err != nil {
		return nil, nil
	}
	return parseGroups(status)
}

// parseGroups returns the supplementary groups in a thread's status (proc(5)).
func parseGroups(status []byte) ([]uint32, error) {
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "Groups:"); ok {
			var list []uint32
			for _, word := range strings.Fields(text) {
				n, err := strconv.ParseUint(word, 10, 32)
				if err != nil {
					return nil, fmt.Errorf("groups of a process: %w", err)
				}
				list = append(list, uint32(n))
			}
			return list, nil
		}
	}
	return nil, nil
}

// isRoot reports whether the request is root's or of the daemon's own user.
func (r *request) isRoot() bool { return r.server.isRoot(r.uid) }

func (s *Server) isRoot(uid uint32) bool { return uid == 0 || uid == s.uid }

// mayDelete returns the check whether the request may remove or rename what belongs to an owner in
// a directory of the daemon's with the sticky bit (unlink(2), EPERM). The kernel has asked the same
// of the owner that it last heard of; the check is of the owner at the time of the change.
func (r *request) mayDelete() func(vmm.Owner) error {
	return func(o vmm.Owner) error {
		if r.isRoot() || r.uid == o.UID {
			return nil
		}
		return fmt.Errorf("it belongs to uid %d: %w", o.UID, vmm.ErrNotPermitted)
	}
}

// mayWrite returns the check whether the request may change what is in a VM's directory. It must be
// called before anything frees the process, whose groups it may read.
func (r *request) mayWrite() (func(vmm.Owner) error, error) {
	var groups []uint32
	if o := r.snap().Owner; !r.isRoot() && r.uid != o.UID {
		var err error
		if groups, err = r.groups(); err != nil {
			return nil, err
		}
	}
	return func(o vmm.Owner) error {
		switch {
		case r.isRoot(), r.uid == o.UID:
			return nil
		case r.gid == o.GID, slices.Contains(groups, o.GID):
			if o.Mode&0o020 != 0 {
				return nil
			}
		case o.Mode&0o002 != 0:
			return nil
		}
		return fmt.Errorf("it belongs to uid %d, and you may not write its directory: %w",
			o.UID, vmm.ErrAccess)
	}, nil
}

// checkWriter refuses a write by another uid or gid than the file was opened by: the writer has not
// chosen what it writes to, and maybe not what it writes, as a setuid program whose output was led
// here.
func (r *request) checkWriter(h *opened) error {
	if r.uid == h.uid && r.gid == h.gid {
		return nil
	}
	err := fmt.Errorf("cannot write %s of %s: uid %d, gid %d opened it and uid %d, gid %d writes; "+
		"both must be the same: %w",
		r.file.name, r.whose(), h.uid, h.gid, r.uid, r.gid, vmm.ErrNotPermitted)
	r.uid, r.gid = h.uid, h.gid // the refusal is told to the opener
	return err
}
