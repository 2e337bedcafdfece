package fs

import (
	"context"
	"fmt"
	"sync"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
)

const (
	maxSessions = guest.MaxExecs   // of one VM
	maxNumber   = 1<<16 - 1        // of a session
	lingerFor   = 60 * time.Second // of a session without open files
)

// sessions holds the sessions of all VMs.
type sessions struct {
	linger time.Duration // immutable

	mu     sync.Mutex // guards what follows
	last   uint64
	number uint64 // of the newest, of any VM: one returns only when the kernel forgot its name
	open   map[uint64]*session
	ofVM   map[uint64]map[int]*session // by the VM's serial and the session's number
}

func newSessions(linger time.Duration) *sessions {
	return &sessions{
		linger: linger, open: make(map[uint64]*session), ofVM: make(map[uint64]map[int]*session),
	}
}

// session is the directory of one command. Lock order: sessions.mu before session.mu.
type session struct {
	all      *sessions // immutable, as are all before mu
	serial   uint64
	number   int
	vm       *vmm.VM
	uid, gid uint32
	made     time.Time
	unused   func()        // ends its use of the VM
	started  chan struct{} // closed when exec is set
	over     chan struct{} // closed with the session

	mu       sync.Mutex // guards what follows
	command  guest.ExecRequest
	starting bool
	exec     *guest.Exec
	users    int // open files
	releases int // how often users became 0
	timer    *time.Timer
	closed   bool
}

// add returns a new session with one user.
func (t *sessions) add(v *vmm.VM, uid, gid uint32) (*session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	mine := t.ofVM[v.Serial()]
	if len(mine) >= maxSessions {
		return nil, fmt.Errorf("%s has %d sessions of exec, no more at once: %w",
			v.Snapshot().Name, maxSessions, vmm.ErrBusy)
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

// closeAll ends all sessions. The mount must have ended, so that no more begin.
func (t *sessions) closeAll() {
	t.mu.Lock()
	all := make([]*session, 0, len(t.open))
	for _, s := range t.open {
		all = append(all, s)
	}
	t.mu.Unlock()
	var done sync.WaitGroup
	for _, s := range all {
		done.Go(s.close)
	}
	done.Wait()
}

// hold counts one more open file; false if the session is over.
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

// release counts one open file less. Without any, the session ends after a while.
func (s *session) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 && !s.closed {
		s.releases++
		release := s.releases
		s.timer = time.AfterFunc(s.all.linger, func() { s.expire(release) })
	}
}

// expire ends the session unless a file of it was opened after that release. A timer that has fired
// cannot be stopped, so release may not be the last one.
func (s *session) expire(release int) {
	s.end(func() bool { return s.users == 0 && s.releases == release })
}

// close ends the session and, unless it was detached, its command. A second call does nothing.
func (s *session) close() {
	s.end(func() bool { return true })
}

// end closes the session if it is open and due. s.mu is locked over both, so that no file of it is
// opened in between.
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

// endLocked makes the session unknown. The caller holds sessions.mu and s.mu.
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

// start runs the command that set completes, once for a session.
func (s *session) start(w *writeRequest, set func(*guest.ExecRequest) error) error {
	s.mu.Lock()
	if s.starting || s.exec != nil || s.closed {
		s.mu.Unlock()
		return fmt.Errorf("it ran already, open exec/clone for another: %w", vmm.ErrBusy)
	}
	command := s.command
	if err := set(&command); err != nil {
		s.mu.Unlock()
		return err
	}
	s.starting = true
	s.mu.Unlock()
	g, err := w.guest()
	var e *guest.Exec
	if err == nil {
		e, err = guest.StartExec(w.ctx, g, command)
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

// running calls do with the command, which must have started.
func (s *session) running(do func(*guest.Exec) error) error {
	select {
	case <-s.started:
		return do(s.exec)
	default:
		return fmt.Errorf("nothing runs yet: %w", vmm.ErrBusy)
	}
}

// wait returns the command as soon as it has started.
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
