package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"banger/vmm"
	"banger/vmm/guest"
)

// Commands in a guest work as Plan 9's clone files (net(3) of its manual). Opening exec/clone makes
// a session, a directory exec/N with the files of one command.

// mayUse reports whether the session is the caller's own, or the caller root.
func (c *call) mayUse(s *session) bool { return c.uid == s.uid || c.isRoot() }

// execFind knows the numbers of the caller's sessions.
func execFind(r *request, name string) (dirent, bool) {
	n, err := strconv.Atoi(name)
	if err != nil || strconv.Itoa(n) != name {
		return dirent{}, false
	}
	s := r.server.sessions.find(r.vm, n)
	if s == nil || !r.mayUse(s) {
		return dirent{}, false
	}
	return dirent{name: name, serial: s.serial}, true
}

// cloneOpen makes a session. Opened read-write, the file is the session's ctl, and the session ends
// with it.
func cloneOpen(r *openRequest) (handle, error) {
	_, err := r.guest()
	var s *session
	if err == nil {
		s, err = r.server.sessions.add(r.vm, r.uid, r.gid)
	}
	if err != nil {
		r.vm.Fail(err)
		return nil, err
	}
	r.vm.Touch()
	return &clone{session: s, tied: r.readWrite, rest: []byte(strconv.Itoa(s.number) + "\n")}, nil
}

// guest returns the agent in the request's VM.
func (r *request) guest() (guest.Agent, error) {
	s := r.snap()
	if s.Machine == nil {
		return nil, fmt.Errorf("cannot run commands in %s, it is %s: %w",
			s.Name, s.State, vmm.ErrNotRunning)
	}
	agent := s.Agent()
	if agent == nil {
		return nil, fmt.Errorf("%s runs no commands: %w", s.Name, vmm.ErrUnsupported)
	}
	return agent, nil
}

// clone is an open exec/clone. It returns the session's number once.
type clone struct {
	session *session
	tied    bool // the session ends with the file

	mu   sync.Mutex // guards rest
	rest []byte
}

func (c *clone) read(_ *call, p []byte, _ int64) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return p[:n], nil
}

func (c *clone) close() {
	if c.tied {
		c.session.close()
		return
	}
	c.session.release()
}

func cloneWrite(w *writeRequest, p []byte) (int, error) {
	c, ok := w.handle.(*clone)
	if !ok {
		return 0, fmt.Errorf("exec/clone of %s was opened write-only, which names no session: "+
			"open it read-write: %w", w.snap().Name, vmm.ErrInvalid)
	}
	return c.session.control(w, p)
}

// execOutput is an output of a session's command. Its offsets mean nothing.
type execOutput struct {
	session *session
	from    func(*guest.Exec, context.Context, []byte) (int, error)
}

func dataOpen(r *openRequest) (handle, error) {
	return execOutput{r.session, (*guest.Exec).Read}, nil
}

func stderrOpen(r *openRequest) (handle, error) {
	return execOutput{r.session, (*guest.Exec).ReadErrors}, nil
}

func (o execOutput) read(c *call, p []byte, _ int64) ([]byte, error) {
	ctx, cancel := c.patience()
	defer cancel()
	e, err := o.session.wait(ctx)
	if err != nil {
		return nil, c.again(err)
	}
	n, err := o.from(e, ctx, p)
	if n > 0 || errors.Is(err, io.EOF) {
		err = nil
	}
	return p[:n], c.again(err)
}

func (execOutput) close() {}

// dataWrite is input for the command.
func dataWrite(w *writeRequest, p []byte) (int, error) {
	ctx, cancel := w.patience()
	defer cancel()
	e, err := w.session.wait(ctx)
	if err != nil {
		return 0, w.again(err)
	}
	n, err := e.Write(ctx, p)
	return n, w.again(err)
}

func statusOpen(r *openRequest) (handle, error) {
	s := r.session
	return &waiter{wait: func(ctx context.Context) (string, error) {
		e, err := s.wait(ctx)
		if err != nil {
			return "", err
		}
		select {
		case <-e.Done():
		case <-ctx.Done():
			return "", ctx.Err()
		}
		status, err := e.Status()
		return status.String(), err
	}}, nil
}
