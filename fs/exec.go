package fs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"banger/internal/value"
	"banger/vmm"
	"banger/vmm/guest"
)

// Commands in a guest, in the manner of Plan 9's clone files (net(3) of its manual): opening exec/clone makes a session, a
// directory exec/N with the files of one command.

const (
	maxSessions = guest.MaxExecs   // of one VM
	maxNumber   = 1<<16 - 1        // of a session
	maxControl  = 60 << 10         // bytes of a command to ctl, which an agent's stream can be asked for with
	lingerFor   = 60 * time.Second // of a session of which nothing is open
)

// sessions are those of all VMs.
type sessions struct {
	linger time.Duration // immutable

	mu     sync.Mutex // guards what follows
	last   uint64
	number uint64 // of the newest, of whichever VM: a number comes again late, when the kernel has forgotten the name
	open   map[uint64]*session
	ofVM   map[uint64]map[int]*session // by the VM's serial and the session's number
}

func newSessions(linger time.Duration) *sessions {
	return &sessions{linger: linger, open: make(map[uint64]*session), ofVM: make(map[uint64]map[int]*session)}
}

// session is one of those. Lock order: sessions.mu before session.mu.
type session struct {
	all      *sessions // immutable, as are those before mu
	serial   uint64
	number   int
	vm       *vmm.VM
	uid, gid uint32
	made     time.Time
	unused   func()        // ends its use of the VM
	started  chan struct{} // closed when exec is there
	over     chan struct{} // closed when the session is

	mu       sync.Mutex // guards what follows
	request  guest.ExecRequest
	starting bool
	exec     *guest.Exec
	users    int // open files
	releases int // how often users became 0
	timer    *time.Timer
	closed   bool
}

// add makes a session with one user.
func (t *sessions) add(v *vmm.VM, uid, gid uint32) (*session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	mine := t.ofVM[v.Serial()]
	if len(mine) >= maxSessions {
		return nil, fmt.Errorf("%s has %d sessions of exec, no more at once: %w", v.Snapshot().Name, maxSessions, vmm.ErrBusy)
	}
	if mine == nil {
		mine = make(map[int]*session)
		t.ofVM[v.Serial()] = mine
	}
	n := 0
	for n == 0 || mine[n] != nil {
		t.number++
		n = int(t.number % (maxNumber + 1))
	}
	t.last++
	s := &session{
		all: t, serial: sessionBit | t.last, number: n, vm: v, uid: uid, gid: gid, made: time.Now(),
		unused: v.Use(), started: make(chan struct{}), over: make(chan struct{}), users: 1,
	}
	mine[n], t.open[s.serial] = s, s
	return s, nil
}

func (t *sessions) get(serial uint64) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open[serial]
}

func (t *sessions) find(v *vmm.VM, number int) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ofVM[v.Serial()][number]
}

// closeAll ends all sessions; no more are made when it is called.
func (t *sessions) closeAll() {
	t.mu.Lock()
	all := make([]*session, 0, len(t.open))
	for _, s := range t.open {
		all = append(all, s)
	}
	t.mu.Unlock()
	var done sync.WaitGroup
	for _, s := range all {
		done.Add(1)
		go func() {
			defer done.Done()
			s.close()
		}()
	}
	done.Wait()
}

// hold is one more open file; false when the session is over.
func (s *session) hold() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.users++
	if s.timer != nil {
		s.timer.Stop()
	}
	return true
}

// release is one less; without any the session lasts a while.
func (s *session) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 && !s.closed {
		s.releases++
		release := s.releases
		s.timer = time.AfterFunc(s.all.linger, func() { s.expire(release) })
	}
}

// expire ends the session if no file of it was opened since that release. A timer that has fired
// cannot be stopped, so its release may be an earlier one than the last.
func (s *session) expire(release int) {
	s.end(func() bool { return s.users == 0 && s.releases == release })
}

// close ends the session and, unless it was detached, its command; again, it does nothing.
func (s *session) close() {
	s.end(func() bool { return true })
}

// end closes the session if it is open and due, which is asked with s.mu held: nobody can open a
// file of it between the answer and the end.
func (s *session) end(due func() bool) {
	t := s.all
	t.mu.Lock()
	s.mu.Lock()
	ends := !s.closed && due()
	if ends {
		s.endLocked()
	}
	e := s.exec
	s.mu.Unlock()
	t.mu.Unlock()
	if !ends {
		return
	}
	s.unused()
	if e != nil {
		e.Close()
	}
}

// endLocked makes the session unknown. sessions.mu and s.mu are held.
func (s *session) endLocked() {
	t := s.all
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	close(s.over)
	delete(t.open, s.serial)
	mine := t.ofVM[s.vm.Serial()]
	if delete(mine, s.number); len(mine) == 0 {
		delete(t.ofVM, s.vm.Serial())
	}
}

// mayUse reports whether the session is the request's own, or the request root's.
func (r *request) mayUse(s *session) bool {
	return r.uid == s.uid || r.isRoot()
}

// execFind knows clone, and the numbers of the reader's sessions.
func execFind(r *request, name string) (entry, bool) {
	if name == cloneRow.name {
		return entry{name: name, serial: r.vm.Serial(), row: cloneRow.row}, true
	}
	n, err := strconv.Atoi(name)
	if err != nil || strconv.Itoa(n) != name {
		return entry{}, false
	}
	s := r.server.sessions.find(r.vm, n)
	if s == nil || !r.mayUse(s) {
		return entry{}, false
	}
	return entry{name: name, serial: s.serial, row: sessionRow.row}, true
}

// cloneOpen makes a session. Opened to be written, too, it is the session's ctl, and the session ends with it.
func cloneOpen(r *request, readWrite bool) (handle, error) {
	if _, err := r.guest(); err != nil {
		r.vm.Fail(err)
		return nil, err
	}
	s, err := r.server.sessions.add(r.vm, r.uid, r.gid)
	if err != nil {
		r.vm.Fail(err)
		return nil, err
	}
	r.vm.Touch()
	return &clone{session: s, tied: readWrite, rest: []byte(strconv.Itoa(s.number) + "\n")}, nil
}

// guest is the agent in the request's VM.
func (r *request) guest() (guest.Agent, error) {
	s := r.snap()
	if s.Machine == nil {
		return nil, fmt.Errorf("cannot run commands in %s, it is %s: %w", s.Name, s.State, vmm.ErrNotRunning)
	}
	agent := s.Agent()
	if agent == nil {
		return nil, fmt.Errorf("%s runs no commands: %w", s.Name, vmm.ErrUnsupported)
	}
	return agent, nil
}

// clone is an open exec/clone; it gives the session's number once.
type clone struct {
	session *session
	tied    bool

	mu   sync.Mutex // guards rest
	rest []byte
}

func (c *clone) read(_ *request, n int, _ int64) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	part := c.rest[:min(n, len(c.rest))]
	c.rest = c.rest[len(part):]
	return part, nil
}

func (c *clone) close() {
	if c.tied {
		c.session.close()
		return
	}
	c.session.release()
}

func cloneType(r *request, p []byte) (int, error) {
	c, ok := r.handle.(*clone)
	if !ok {
		return 0, fmt.Errorf("exec/clone of %s was opened to be written only, which names no session: open it to be read, too: %w", r.snap().Name, vmm.ErrInvalid)
	}
	return c.session.control(r, p)
}

func ctlShow(r *request) ([]byte, error) { return line(strconv.Itoa(r.session.number)) }

func ctlType(r *request, p []byte) (int, error) { return r.session.control(r, p) }

// control obeys one command. It takes all of p or nothing.
func (s *session) control(r *request, p []byte) (int, error) {
	name := r.snap().Name
	if len(p) > maxControl {
		return 0, fmt.Errorf("cannot write %d bytes to ctl of a session of %s, at most %d at once: %w", len(p), name, maxControl, vmm.ErrTooBig)
	}
	text := strings.TrimSpace(string(p))
	if strings.IndexByte(text, 0) >= 0 {
		return 0, fmt.Errorf("cannot write a NUL byte to ctl of a session of %s: %w", name, vmm.ErrInvalid)
	}
	word, rest, _ := strings.Cut(text, " ")
	rest = strings.TrimSpace(rest)
	if err := s.obey(r, word, rest); err != nil {
		return 0, fmt.Errorf("session %d of %s: cannot obey %.16q: %w", s.number, name, word, err)
	}
	r.vm.Fail(nil)
	return len(p), nil
}

func (s *session) obey(r *request, word, rest string) error {
	switch word {
	case "run":
		if rest == "" {
			return fmt.Errorf("write run COMMAND LINE: %w", vmm.ErrInvalid)
		}
		return s.start(r, func(q *guest.ExecRequest) error { q.Argv = []string{"/bin/sh", "-c", rest}; return nil })
	case "argv":
		return s.start(r, func(q *guest.ExecRequest) error { return parseArgv(q, rest) })
	case "dial":
		port, err := strconv.ParseUint(rest, 10, 16)
		if err != nil || port == 0 {
			return fmt.Errorf("%.64q is not a port from 1 to 65535: %w", rest, vmm.ErrInvalid)
		}
		return s.start(r, func(q *guest.ExecRequest) error {
			*q = guest.ExecRequest{Dial: int(port), Timeout: q.Timeout}
			return nil
		})
	case "dir", "user", "env", "timeout", "tty", "detach":
		return s.set(word, rest)
	case "signal":
		n, err := guest.ParseSignal(rest)
		if err != nil {
			return err
		}
		return s.running(func(e *guest.Exec) error { return e.Signal(r.ctx, n) })
	case "resize":
		cols, rows, err := parseSize(rest)
		if err != nil {
			return err
		}
		return s.running(func(e *guest.Exec) error { return e.Resize(r.ctx, cols, rows) })
	case "eof":
		return s.running(func(e *guest.Exec) error { return e.EndInput(r.ctx) })
	case "close":
		s.close()
		return nil
	}
	return fmt.Errorf("write run, argv or dial, before them dir, user, env, timeout, tty or detach, after them signal, resize or eof, or close: %w", vmm.ErrInvalid)
}

// parseArgv reads a JSON list of strings.
func parseArgv(q *guest.ExecRequest, text string) error {
	if err := json.Unmarshal([]byte(text), &q.Argv); err != nil || len(q.Argv) == 0 || q.Argv[0] == "" {
		return fmt.Errorf("%.64q is not a list such as [\"uname\",\"-a\"]: %w", text, vmm.ErrInvalid)
	}
	for _, a := range q.Argv {
		if strings.IndexByte(a, 0) >= 0 {
			return fmt.Errorf("an argument has a NUL byte: %w", vmm.ErrInvalid)
		}
	}
	return nil
}

// parseSize reads 80x24, columns and rows.
func parseSize(text string) (cols, rows int, err error) {
	c, r, _ := strings.Cut(text, "x")
	w, werr := strconv.ParseUint(c, 10, 16)
	h, herr := strconv.ParseUint(r, 10, 16)
	if errors.Join(werr, herr) != nil || w == 0 || h == 0 {
		return 0, 0, fmt.Errorf("%.64q is not a size such as 80x24: %w", text, vmm.ErrInvalid)
	}
	return int(w), int(h), nil
}

var errDetachedTerminal = fmt.Errorf("what is detached has no terminal: %w", vmm.ErrInvalid)

// set changes what will be run.
func (s *session) set(word, text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.starting || s.exec != nil {
		return fmt.Errorf("it runs already: %w", vmm.ErrBusy)
	}
	q := &s.request
	switch word {
	case "dir":
		if !strings.HasPrefix(text, "/") {
			return fmt.Errorf("%.64q is not an absolute path: %w", text, vmm.ErrInvalid)
		}
		q.Dir = text
	case "user":
		q.User = text
	case "env":
		if name, _, ok := strings.Cut(text, "="); !ok || name == "" {
			return fmt.Errorf("%.64q is not NAME=VALUE: %w", text, vmm.ErrInvalid)
		}
		total := len(text)
		for _, e := range q.Env {
			total += len(e)
		}
		if total > maxControl {
			return fmt.Errorf("the environment would have %d bytes, %d are allowed: %w", total, maxControl, vmm.ErrTooBig)
		}
		q.Env = append(q.Env, text)
	case "timeout":
		d, err := value.ParseDuration(text)
		if err != nil {
			return err
		}
		q.Timeout = max(d, 0) // NoLimit is none
	case "tty":
		cols, rows, err := parseSize(cmp.Or(text, "80x24"))
		if err != nil {
			return err
		}
		if q.Detach {
			return errDetachedTerminal
		}
		q.Cols, q.Rows = cols, rows
	case "detach":
		if q.Cols > 0 {
			return errDetachedTerminal
		}
		q.Detach = true
	}
	return nil
}

// start runs the command, once for a session.
func (s *session) start(r *request, what func(*guest.ExecRequest) error) error {
	s.mu.Lock()
	if s.starting || s.exec != nil || s.closed {
		s.mu.Unlock()
		return fmt.Errorf("it ran already, open exec/clone for another: %w", vmm.ErrBusy)
	}
	q := s.request
	if err := what(&q); err != nil {
		s.mu.Unlock()
		return err
	}
	s.starting = true
	s.mu.Unlock()
	g, err := r.guest()
	var e *guest.Exec
	if err == nil {
		e, err = guest.StartExec(r.ctx, g, q)
	}
	s.mu.Lock()
	s.starting = false
	if err == nil && s.closed {
		err = fmt.Errorf("it was closed: %w", vmm.ErrGone)
	} else if err == nil {
		s.exec = e
		close(s.started)
		e = nil
	}
	s.mu.Unlock()
	if e != nil {
		e.Close()
	}
	return err
}

// running does something to a command that was started.
func (s *session) running(do func(*guest.Exec) error) error {
	select {
	case <-s.started:
		return do(s.exec)
	default:
		return fmt.Errorf("nothing runs yet: %w", vmm.ErrBusy)
	}
}

// wait gives the command as soon as it was started.
func (s *session) wait(ctx context.Context) (*guest.Exec, error) {
	select {
	case <-s.started:
		return s.exec, nil
	default:
	}
	select {
	case <-s.started:
		return s.exec, nil
	case <-s.over:
		return nil, fmt.Errorf("session %d was closed: %w", s.number, vmm.ErrGone)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// execOutput is an output of a session's command. Its offsets mean nothing.
type execOutput struct {
	session *session
	from    func(*guest.Exec, context.Context, []byte) (int, error)
}

func dataOpen(r *request, _ bool) (handle, error) {
	return execOutput{r.session, (*guest.Exec).Read}, nil
}
func stderrOpen(r *request, _ bool) (handle, error) {
	return execOutput{r.session, (*guest.Exec).ReadErrors}, nil
}

func (o execOutput) read(r *request, n int, _ int64) ([]byte, error) {
	ctx, cancel := r.patience()
	defer cancel()
	e, err := o.session.wait(ctx)
	if err != nil {
		return nil, r.again(err)
	}
	n, err = o.from(e, ctx, r.answer[:n])
	if n > 0 || errors.Is(err, io.EOF) {
		err = nil
	}
	return r.answer[:n], r.again(err)
}

func (execOutput) close() {}

// dataType is input for the command.
func dataType(r *request, p []byte) (int, error) {
	ctx, cancel := r.patience()
	defer cancel()
	e, err := r.session.wait(ctx)
	if err != nil {
		return 0, r.again(err)
	}
	n, err := e.Write(ctx, p)
	return n, r.again(err)
}

func statusOpen(r *request, _ bool) (handle, error) {
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
