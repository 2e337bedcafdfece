package fs

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/vmm"
)

// maxCallers bounds the open files of one uid that keep directories of their callers open.
const maxCallers = 64

// keptCaller is a Caller that an open file shares with what its writes began.
type keptCaller struct {
	*vmm.Caller
	all   *slots
	users atomic.Int32
}

// use counts one more user.
func (k *keptCaller) use() { k.users.Add(1) }

// release counts one user less. The last closes the Caller's files. It does nothing on nil.
func (k *keptCaller) release() {
	if k == nil || k.users.Add(-1) > 0 {
		return
	}
	k.Root.Close() // may be nil
	k.Dir.Close()
	k.all.release(uint64(k.UID))
}

// keptCaller returns the process behind the request, for the file that the request opens. The
// caller releases it.
func (r *request) keptCaller() (*keptCaller, error) {
	all := &r.server.callers
	if !all.acquire(uint64(r.uid)) {
		return nil, fmt.Errorf("cannot open %s of %s: "+
			"uid %d has %d files open that store paths: close some: %w",
			r.file.name, r.owner(), r.uid, all.most, vmm.ErrBusy)
	}
	c, err := r.process()
	if err != nil {
		all.release(uint64(r.uid))
		return nil, err
	}
	k := &keptCaller{Caller: c, all: all}
	k.use()
	return k, nil
}

// process returns the process behind the call. It must be called while that process waits: later
// its pid may be another's. The caller closes the files of the result.
func (c *call) process() (*vmm.Caller, error) {
	p := &vmm.Caller{UID: c.uid, GID: c.gid}
	if c.pid == 0 { // of another pid namespace
		return p, nil
	}
	var err error
	if p.Groups, err = c.groups(); err != nil {
		return nil, err
	}
	// A link that leads nowhere or must not be followed leaves nil: paths by it will be refused.
	p.Root, _ = os.OpenFile(fmt.Sprintf("/proc/%d/root", c.pid), unix.O_PATH|syscall.O_DIRECTORY, 0)
	p.Dir, _ = os.OpenFile(fmt.Sprintf("/proc/%d/cwd", c.pid), unix.O_PATH|syscall.O_DIRECTORY, 0)
	return p, nil
}

// groups returns the supplementary groups of the thread behind the call, none if it is invisible.
func (c *call) groups() ([]uint32, error) {
	if c.pid == 0 {
		return nil, nil
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.pid))
	if err != nil {
		return nil, nil
	}
	var list []uint32
	for _, word := range strings.Fields(parseStatus(status)["Groups"]) {
		n, err := strconv.ParseUint(word, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("groups of a process: %w", err)
		}
		list = append(list, uint32(n))
	}
	return list, nil
}

// isRoot reports whether the call is by root or the daemon's own user.
func (c *call) isRoot() bool { return c.server.isRoot(c.uid) }

func (s *Server) isRoot(uid uint32) bool { return uid == 0 || uid == s.uid }

// mayDelete returns the check whether the call may remove or rename what an owner has in a
// directory of the daemon's with the sticky bit (unlink(2), EPERM). The kernel has checked the
// owner that it knew. This check is of the owner at the time of the change.
func (c *call) mayDelete() func(vmm.Owner) error {
	return func(o vmm.Owner) error {
		if c.isRoot() || c.uid == o.UID {
			return nil
		}
		return fmt.Errorf("it belongs to uid %d: %w", o.UID, vmm.ErrNotPermitted)
	}
}

// mayWrite returns the check whether the request may change the content of a VM's directory. It
// must be called while the process waits: it may read its groups.
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

// checkWriter refuses a write by another uid or gid than the opener's. The writer has not chosen
// the file, and maybe not the text: the output of a setuid program may have been redirected here.
func (r *request) checkWriter(h *opened) error {
	if r.uid == h.uid && r.gid == h.gid {
		return nil
	}
	err := fmt.Errorf("cannot write %s of %s: uid %d, gid %d opened it and uid %d, gid %d writes; "+
		"both must be the same: %w",
		r.file.name, r.owner(), h.uid, h.gid, r.uid, r.gid, vmm.ErrNotPermitted)
	r.uid, r.gid = h.uid, h.gid // the opener finds the refusal
	return err
}
