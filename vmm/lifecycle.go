package vmm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

const (
	powerOffWait  = 3 * time.Second        // for the agent to accept a shutdown
	configureWait = 3 * time.Second        // for the agent to set the guest's address
	greetAgain    = 100 * time.Millisecond // after the first greeting that failed, then twice as long
	greetAtLast   = 5 * time.Second
)

var errUnchanged = errors.New("nothing to change")

// VM is one virtual machine. All methods may be called from many goroutines.
type VM struct {
	m      *Manager // immutable, as are serial and own
	serial uint64
	own    chan struct{} // held by whoever writes the record; never by a reader

	snap   atomic.Pointer[Snapshot]
	events eventLog
	users  atomic.Int32           // who uses it for longer than a moment
	public atomic.Pointer[string] // HostKey, once it was read

	mu      sync.Mutex    // guards what follows, and every change of snap
	changed chan struct{} // closed at the next snapshot; nil while nobody waits
	busy    *transition
	removed bool
	health  string
	saved   time.Time // the time of use that is durable
}

// transition is a command under way. err is valid once done is closed.
type transition struct {
	command Command
	cancel  context.CancelFunc
	done    chan struct{}
	err     error
}

func (m *Manager) newVM(r Record) *VM {
	v := &VM{m: m, serial: r.Serial, own: make(chan struct{}, 1), saved: r.Touched}
	v.snap.Store(&Snapshot{Record: r, Dir: filepath.Join(m.vmsDir, r.ID)})
	return v
}

// Serial never changes.
func (v *VM) Serial() uint64 { return v.serial }

// Snapshot is the VM as the last transition left it; it never blocks.
func (v *VM) Snapshot() *Snapshot { return v.snap.Load() }

// Changed gives a channel that is closed when the next snapshot is published.
func (v *VM) Changed() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changedLocked()
}

func (v *VM) changedLocked() <-chan struct{} {
	if v.changed == nil {
		v.changed = make(chan struct{})
	}
	return v.changed
}

func (v *VM) transition() *transition {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.busy
}

// publish shows everybody a changed copy of the snapshot.
func (v *VM) publish(change func(*Snapshot)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := *v.Snapshot()
	change(&s)
	s.Named = v.m.named.Load()
	s.stamp(v.Snapshot())
	v.snap.Store(&s)
	if v.changed != nil {
		close(v.changed)
		v.changed = nil
	}
}

// stamp notes the time for every file whose value differs from old's.
func (s *Snapshot) stamp(old *Snapshot) {
	names, _ := changedSettings(&old.Config, &s.Config)
	if len(names) > 0 {
		names = append(names, "config")
	}
	for _, d := range []struct {
		name    string
		differs bool
	}{
		{"state", old.State != s.State},
		{"error", old.Error != s.Error},
		{"name", old.Name != s.Name},
		{"pid", old.Process != s.Process},
		{"address", old.GuestAddress() != s.GuestAddress()},
		{"address6", old.GuestAddress6() != s.GuestAddress6()},
		{"dns", old.DNS() != s.DNS()},
		{"started", !old.Started.Equal(s.Started)},
		{"touched", !old.Touched.Equal(s.Touched)},
		{"health", old.Ready != s.Ready || old.State != s.State},
	} {
		if d.differs {
			names = append(names, d.name)
		}
	}
	if len(names) > 0 {
		s.Changed = old.Changed.with(time.Now(), names...)
	}
}

// update changes the record, durably, and publishes the result. change works on
// a copy; its error refuses everything, errUnchanged is success. One at a time
// for each VM; ctx bounds the wait for the turn, not the write.
func (v *VM) update(ctx context.Context, change func(*Snapshot) error) error {
	return v.updateThen(ctx, change, func(error) {})
}

// updateThen is update that calls then with its result, still in its turn.
func (v *VM) updateThen(ctx context.Context, change func(*Snapshot) error, then func(error)) (err error) {
	select {
	case v.own <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-v.own }()
	if v.gone() {
		return ErrNotFound
	}
	err = v.updateOwned(ctx, change)
	then(err)
	return err
}

// updateOwned is update for who has the turn.
func (v *VM) updateOwned(ctx context.Context, change func(*Snapshot) error) error {
	s := *v.Snapshot()
	if err := change(&s); err != nil {
		if errors.Is(err, errUnchanged) {
			return nil
		}
		return err
	}
	if err := v.m.o.Store.Update(context.WithoutCancel(ctx), &s.Record); err != nil {
		return fmt.Errorf("cannot record it: %w", err)
	}
	v.publish(func(now *Snapshot) {
		touched := now.Touched // renewed without waiting for the turn
		failure := now.Error
		was := v.snap.Load().Record
		now.Record = s.Record
		now.Machine, now.Ready, now.ReadyIn, now.Since = s.Machine, s.Ready, s.ReadyIn, s.Since
		now.Address6 = s.Address6
		if touched.After(s.Touched) {
			now.Touched = touched
		}
		if s.Error == was.Error {
			now.Error = failure
		}
	})
	return nil
}

func (v *VM) gone() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.removed
}

func (v *VM) emit(what, detail string) {
	v.m.emit(v, v.Snapshot().Name, what, detail)
}

// logf adds a line to the VM's `log`, if it has been started before.
func (v *VM) logf(format string, args ...any) {
	f, err := v.openLog()
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%s banger: %s\n", time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), fmt.Sprintf(format, args...))
}

func (v *VM) openLog() (*os.File, error) {
	return os.OpenFile(filepath.Join(v.Snapshot().Dir, LogFile), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
}

func (v *VM) trimLog(s *Snapshot) {
	if s.Machine == nil {
		return
	}
	f, err := os.OpenFile(filepath.Join(s.Dir, LogFile), os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if err := TrimHead(f, TailMax); err != nil {
		v.m.o.Log.Warn("cannot trim a VM's log", "vm", s.Name, "err", err)
	}
}

// Chown changes the owner; the caller has checked that it may.
func (v *VM) Chown(ctx context.Context, owner Owner) error {
	return v.update(ctx, func(s *Snapshot) error {
		s.Owner = owner
		return nil
	})
}

// Touch renews the lease that idle_timeout counts from; it does not block (the time is kept durably within a minute).
func (v *VM) Touch() { v.SetTouched(time.Now()) }

// Use keeps the VM from being idle until the function that it gives is called, once. It does not block.
func (v *VM) Use() func() {
	v.users.Add(1)
	return func() {
		v.Touch()
		v.users.Add(-1)
	}
}

// SetTouched is `touch -d` on touched, or a write of a time.
func (v *VM) SetTouched(t time.Time) {
	v.publish(func(s *Snapshot) { s.Touched = t })
}

// Fail records the sentence of a refused command in `error`; nil clears it.
func (v *VM) Fail(err error) {
	sentence := ""
	if err != nil {
		sentence = err.Error()
	}
	if v.Snapshot().Error == sentence {
		return
	}
	v.publish(func(s *Snapshot) { s.Error = sentence })
	if err != nil {
		v.emit(EventError, sentence)
	}
}

// PublishHealth says that health changed; it becomes an event. Equal to the last: nothing happens.
func (v *VM) PublishHealth(health string) {
	v.mu.Lock()
	same := v.health == health || v.removed
	v.health = health
	v.mu.Unlock()
	if !same {
		v.publish(func(s *Snapshot) { s.Changed = s.Changed.with(time.Now(), "health") })
		v.emit(EventHealth, health)
	}
}

// LastHealth is what PublishHealth said last, empty if it never did; it does not block.
func (v *VM) LastHealth() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.health
}

// Events gives this VM's events, Follow a reader of those to come.
func (v *VM) Events() []Event     { return v.events.all() }
func (v *VM) Follow() EventReader { return v.events.follow() }

// idle reports whether nobody has used the VM for its idle_timeout. Times of
// this daemon's life compare by the monotonic clock.
func (v *VM) idle(s *Snapshot) bool {
	if s.Config.IdleTimeout == NoLimit || s.State != Running && s.State != Paused || v.users.Load() > 0 {
		return false
	}
	used := s.Touched
	if s.Since.After(used) {
		used = s.Since
	}
	return time.Since(used) >= s.Config.IdleTimeout
}

func (v *VM) saveTouched(ctx context.Context) {
	err := v.update(ctx, func(s *Snapshot) error {
		if s.Touched.Equal(v.saved) {
			return errUnchanged
		}
		v.saved = s.Touched
		return nil
	})
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, context.Canceled) {
		v.m.o.Log.Error("cannot record the last use", "vm", v.Snapshot().Name, "err", err)
	}
}

// ownDown takes the turn to write the record of a VM that is stopped or failed
// and about which no command is under way; it waits for the end of one whose
// result is shown already. ErrBusy in any other state. claim runs before any
// other command can begin. Without an error the caller gives the turn back.
func (v *VM) ownDown(ctx context.Context, claim func(*Snapshot) error) error {
	for {
		select {
		case v.own <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		v.mu.Lock()
		s, busy, changed := v.Snapshot(), v.busy, v.changedLocked()
		var err error
		switch {
		case v.removed:
			err = ErrNotFound
		case s.State != Stopped && s.State != Failed:
			err = fmt.Errorf("it is %s: stop it first: %w", s.State, ErrBusy)
		case busy == nil:
			err = claim(s)
		}
		v.mu.Unlock()
		if busy == nil && err == nil {
			return nil
		}
		<-v.own
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-busy.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// rename gives the VM a name that the caller has taken.
func (v *VM) rename(ctx context.Context, from, to string) error {
	err := v.ownDown(ctx, func(s *Snapshot) error {
		if s.Name != from {
			return ErrNotFound
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer func() { <-v.own }()
	err = v.updateOwned(ctx, func(s *Snapshot) error {
		s.Name = to
		return nil
	})
	if err != nil {
		return err
	}
	v.m.renamed(v, from, to)
	v.emit(EventRename, from)
	v.m.release(from)
	return nil
}

// remove destroys the VM: first its record, durably, then what belongs to it; a
// crash in between leaves a directory without a record, which Open removes.
func (v *VM) remove(ctx context.Context) error {
	err := v.ownDown(ctx, func(s *Snapshot) error {
		if s.Config.Protected {
			return fmt.Errorf("write 0 to its file protected first: %w", ErrProtected)
		}
		v.removed = true // no command begins from here on
		return nil
	})
	if err != nil {
		return err
	}
	defer func() { <-v.own }()
	if err := v.m.o.Store.Delete(context.WithoutCancel(ctx), v.serial); err != nil {
		v.mu.Lock()
		v.removed = false
		v.mu.Unlock()
		return err
	}
	s := v.Snapshot()
	if err := os.RemoveAll(s.Dir); err != nil {
		v.m.o.Log.Error("cannot remove a VM's directory; the next start of the daemon tries again", "vm", s.Name, "err", err)
	}
	v.m.forget(v)
	v.publish(func(*Snapshot) {}) // wakes who waits for a change that can no longer come
	v.emit(EventRemove, "")
	v.events.end()
	v.m.release(s.Name)
	return nil
}

// Do gives the command and waits for its end; when ctx ends first the transition goes on and ctx's error is returned.
func (v *VM) Do(ctx context.Context, c Command) error {
	t, err := v.begin(ctx, c)
	if err != nil || t == nil {
		return v.nothingToDo(err)
	}
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Accept gives the command and returns once the transition has begun (or was refused).
func (v *VM) Accept(ctx context.Context, c Command) error {
	t, err := v.begin(ctx, c)
	if t == nil {
		return v.nothingToDo(err)
	}
	return err
}

// nothingToDo is the end of a command that began no transition: unless it was refused, it has succeeded.
func (v *VM) nothingToDo(err error) error {
	if err == nil {
		v.Fail(nil)
	}
	return err
}

// begin starts the transition that c asks for, or gives nil when there is nothing to do.
func (v *VM) begin(ctx context.Context, c Command) (*transition, error) {
	return v.beginWork(ctx, c, func(state State) (func(context.Context) error, error) { return v.plan(c, state) })
}

// beginWork is begin with the plan given; that is called under v.mu.
func (v *VM) beginWork(ctx context.Context, c Command, plan func(State) (func(context.Context) error, error)) (*transition, error) {
	name := v.Snapshot().Name
	for {
		v.mu.Lock()
		if v.removed {
			v.mu.Unlock()
			return nil, fmt.Errorf("cannot %s %s: %w", c, name, ErrNotFound)
		}
		state := v.Snapshot().State
		busy := v.busy
		if busy == nil {
			run, err := plan(state)
			if err != nil || run == nil {
				v.mu.Unlock()
				return nil, err
			}
			t, err := v.launchLocked(c, run)
			v.mu.Unlock()
			return t, err
		}
		changed := v.changedLocked()
		v.mu.Unlock()
		switch {
		case c == Kill || c == Stop && state == Starting:
			busy.cancel()
			changed = nil // only its end will do
		case state == Starting || state == Stopping:
			return nil, fmt.Errorf("cannot %s %s: a %s is under way: %w", c, name, busy.command, ErrBusy)
		}
		// Otherwise the transition has just begun or has shown its result already: it is worth the moment.
		select {
		case <-changed:
		case <-busy.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// launchLocked runs the transition in a goroutine of its own. Its context ends
// when it is given up, or when the Manager stops waiting for it.
func (v *VM) launchLocked(c Command, run func(context.Context) error) (*transition, error) {
	ctx, cancel := context.WithCancel(v.m.ctx)
	t := &transition{command: c, cancel: cancel, done: make(chan struct{})}
	ok := v.m.spawn(func() {
		defer cancel()
		t.err = run(ctx)
		v.m.count(c, t.err)
		v.mu.Lock()
		v.busy = nil
		v.mu.Unlock()
		close(t.done)
	})
	if !ok {
		cancel()
		return nil, fmt.Errorf("cannot %s %s: the daemon is ending: %w", c, v.Snapshot().Name, ErrBusy)
	}
	v.busy = t
	return t, nil
}

// plan says what c means in this state: the work to do, nothing, or a refusal.
func (v *VM) plan(c Command, state State) (func(context.Context) error, error) {
	down := state == Stopped || state == Failed
	switch c {
	case Start:
		switch {
		case down:
			return v.start, nil
		case state == Paused:
			return v.resume, nil
		}
		return nil, nil
	case Restart:
		if down {
			return v.start, nil
		}
		return v.restart, nil
	case Stop, Kill:
		switch {
		case state == Stopped:
			return nil, nil
		case state == Failed:
			return v.settle, nil
		case c == Kill:
			return v.kill, nil
		}
		return v.stop, nil
	case Pause, Resume:
		switch {
		case down:
			return nil, fmt.Errorf("cannot %s %s: it is %s: %w", c, v.Snapshot().Name, state, ErrNotRunning)
		case c == Pause && (state == Running || v.full()):
			return v.pause, nil // of one that found no space: so that it does not go on by itself
		case c == Resume && state == Paused:
			return v.resume, nil
		}
		return nil, nil
	}
	return nil, fmt.Errorf("%q is not a command; these are: start stop restart kill pause resume: %w", c, ErrInvalid)
}

// enter records and shows a new state.
func (v *VM) enter(state State, change func(*Snapshot)) error {
	return v.enterWith(state, func(s *Snapshot) error {
		if state == Stopped || state == Failed {
			v.m.o.Network.Disconnect(v.serial)
		}
		if change != nil {
			change(s)
		}
		return nil
	})
}

// enterWith is enter with a change that may refuse.
func (v *VM) enterWith(state State, change func(*Snapshot) error) error {
	err := v.update(context.Background(), func(s *Snapshot) error {
		s.State = state
		return change(s)
	})
	if err != nil {
		return fmt.Errorf("cannot record that %s is %s: %w", v.Snapshot().Name, state, err)
	}
	v.m.o.Log.Info("state", "vm", v.Snapshot().Name, "state", state)
	v.logf("%s", state)
	v.emit(EventState, string(state))
	return nil
}

// ended is what enter changes when a machine is gone.
func ended(reason string) func(*Snapshot) {
	return func(s *Snapshot) {
		s.Machine, s.Ready, s.Process, s.Since = nil, false, Process{}, time.Time{}
		s.Error = reason
	}
}

// enterFailed records that the VM failed, and tells why.
func (v *VM) enterFailed(reason string) error {
	if err := v.enter(Failed, ended(reason)); err != nil {
		return err
	}
	v.emit(EventError, reason)
	return nil
}

// settle makes a failed VM a stopped one.
func (v *VM) settle(context.Context) error { return v.enter(Stopped, ended("")) }

func (v *VM) start(ctx context.Context) error {
	name := v.Snapshot().Name
	began := time.Now()
	machine, err := v.boot(ctx)
	var refused *refusal
	if errors.As(err, &refused) {
		return fmt.Errorf("cannot start %s: %w", name, refused.err)
	}
	if err != nil && ctx.Err() != nil {
		if e := v.enter(Stopped, ended("")); e != nil {
			return e
		}
		return fmt.Errorf("the start of %s was given up: %w", name, ErrGone)
	}
	if err != nil {
		err = fmt.Errorf("cannot start %s: %w", name, err)
		if e := v.enterFailed(err.Error()); e != nil {
			return e
		}
		return err
	}
	err = v.enter(Running, func(s *Snapshot) {
		s.Machine, s.Process, s.Error = machine, machine.Process(), ""
		s.Started, s.Since = began, began
	})
	if err != nil {
		// Not recorded, so not begun: nothing may run that a restart would not find.
		return errors.Join(err, machine.Kill(context.WithoutCancel(ctx)))
	}
	if err := v.forward(context.WithoutCancel(ctx)); err != nil {
		err = fmt.Errorf("cannot start %s: %w", name, err)
		if e := errors.Join(machine.Kill(context.WithoutCancel(ctx)), v.enterFailed(err.Error())); e != nil {
			return e
		}
		return err
	}
	v.greet(machine)
	return nil
}

// refusal is an error found before anything was changed.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }

// boot records the intent, makes what the machine needs and starts it.
func (v *VM) boot(ctx context.Context) (Machine, error) {
	s := v.Snapshot()
	driver := v.m.drivers[s.Config.VMM]
	if driver == nil {
		return nil, &refusal{fmt.Errorf("vmm %q is not here: %w", s.Config.VMM, ErrUnsupported)}
	}
	image, err := v.m.o.Images.Image(s.Config.Image)
	if err != nil {
		return nil, &refusal{fmt.Errorf("image %q: %w", s.Config.Image, err)}
	}
	if err := checkCmdline(&s.Config, &image); err != nil { // the image may have been made anew
		return nil, &refusal{err}
	}
	if err := v.m.o.Network.Check(s.Config.Net); err != nil {
		return nil, &refusal{err}
	}
	_, unwired := driver.(Unwired)
	bridged := s.Config.Net == NetBridge && !unwired
	var address netip.Addr
	if bridged {
		address, err = v.m.o.Store.Lease(context.WithoutCancel(ctx), v.serial, v.m.o.Network.Prefix(), v.m.o.Network.Gateway())
		if err != nil {
			return nil, &refusal{fmt.Errorf("cannot lease an address: %w", err)}
		}
	}
	if err := s.checkBase(&image); err != nil {
		return nil, &refusal{err}
	}
	err = v.enterWith(Starting, func(s *Snapshot) error {
		s.Run++
		s.BootID, s.Process = v.m.bootID, Process{}
		if bridged {
			s.Address, s.Address6 = address, v.m.o.Network.Address6(address).Addr()
			return v.connect(s, s.Config.Publications())
		}
		return probe(s.Config.Publications())
	})
	if err != nil {
		v.m.o.Network.Disconnect(v.serial)
		return nil, &refusal{err}
	}
	spec := v.spec(image)
	if err := v.tidy(ctx); err != nil {
		return nil, fmt.Errorf("cannot end what was begun with its snapshots: %w", err)
	}
	keeper, _ := driver.(DiskKeeper)
	if err := v.makeDisks(ctx, spec, keeper); err != nil {
		return nil, err
	}
	if err := v.addSeed(spec); err != nil {
		return nil, err
	}
	v.logf("start %d of %s, image %s", v.Snapshot().Run, s.Name, image.Name)
	log, err := v.openLog()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	spec.Log, spec.LogFile = log, log
	if bridged {
		tap, err := v.m.o.Network.Tap(ctx, v.serial, s.ID)
		if err != nil {
			return nil, fmt.Errorf("cannot connect it: %w", err)
		}
		defer tap.Close()
		spec.NIC.Tap = tap
	}
	return driver.Start(ctx, spec, v.notify)
}

func (v *VM) spec(image Image) *Spec {
	s := v.Snapshot()
	spec := &Spec{
		Serial: v.serial, ID: s.ID, Name: s.Name,
		StateDir: v.m.o.StateDir, Dir: s.Dir,
		Config: s.Config, Image: image,
		NIC: NIC{Mode: s.Config.Net, MAC: s.MAC},
		UID: -1, GID: -1,
	}
	if v.m.o.VMUIDBase != 0 {
		spec.UID = v.m.o.VMUIDBase + int(v.serial)
		spec.GID = spec.UID
	}
	spec.Disks = disksOf(s.Dir, &s.Config, &image)
	return spec
}

// disksOf gives the disks of a VM with these settings.
func disksOf(dir string, c *Config, image *Image) []Disk {
	var disks []Disk
	if image.Root != "" {
		disks = append(disks, Disk{Path: filepath.Join(dir, DiskOverlay), Format: "qcow2", Base: image.Root, BaseFormat: image.RootFormat})
	}
	if c.Disk > 0 {
		disks = append(disks, Disk{Path: filepath.Join(dir, DiskWork), Format: "qcow2", Size: c.Disk})
	}
	return disks
}

// makeDir makes the VM's directory.
func makeDir(spec *Spec) error {
	if err := os.Mkdir(spec.Dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return os.Chown(spec.Dir, spec.UID, spec.GID)
}

// notify hears what a machine tells of itself; it is called by the driver and must not block.
func (v *VM) notify(n Notice) {
	switch n.Kind {
	case NoticeExited:
		v.m.spawn(v.exited)
	case NoticePanic:
		v.logf("the guest's kernel panicked: %s", n.Detail)
		v.emit(EventPanic, n.Detail)
	case NoticePaused, NoticeFull:
		why := errors.New(n.Detail)
		if n.Kind == NoticeFull {
			why = v.fullError(n.Detail)
		}
		v.logf("%v", why)
		v.m.spawn(func() { v.halted(why) })
	case NoticeError:
		v.logf("%s", n.Detail)
		v.m.spawn(func() { v.Fail(errors.New(n.Detail)) })
	}
}

// exited records the end of a machine that nobody asked to end.
func (v *VM) exited() {
	for {
		v.mu.Lock()
		busy := v.busy
		if busy == nil {
			machine := v.Snapshot().Machine
			if machine == nil || v.removed {
				v.mu.Unlock()
				return // a transition has seen to it
			}
			select {
			case <-machine.Done():
			default:
				v.mu.Unlock()
				return // the notice was of an earlier run
			}
			t, err := v.launchLocked(exit, func(context.Context) error { return v.bury(machine) })
			v.mu.Unlock()
			if err == nil {
				<-t.done
			}
			return
		}
		v.mu.Unlock()
		select {
		case <-busy.done:
		case <-v.m.ctx.Done():
			return
		}
	}
}

// bury records how a machine ended by itself.
func (v *VM) bury(machine Machine) error {
	exit := machine.Exit()
	v.emit(EventExit, exit.Reason)
	v.logf("exit: %s", exit.Reason)
	if exit.Orderly {
		return v.enter(Stopped, ended(""))
	}
	return v.enterFailed(exit.Reason)
}

// stop asks the guest to power itself off, waits, and kills what is left.
func (v *VM) stop(ctx context.Context) error {
	s := v.Snapshot()
	machine := s.Machine
	if err := v.enter(Stopping, nil); err != nil {
		return err
	}
	if s.State == Paused {
		if p, ok := machine.(Pauser); ok {
			if err := p.Resume(ctx); err != nil {
				v.logf("cannot resume it for its stop: %v", err)
			}
		}
	}
	if v.powerOff(ctx, machine) {
		timer := time.NewTimer(s.Config.StopTimeout)
		defer timer.Stop()
		select {
		case <-machine.Done():
		case <-timer.C:
			v.logf("not off after %v: killing it", s.Config.StopTimeout)
		case <-ctx.Done():
		}
	}
	return v.finish(machine)
}

// powerOff reports whether the guest has accepted to end.
func (v *VM) powerOff(ctx context.Context, machine Machine) bool {
	g, ok := machine.(Guester)
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, powerOffWait)
	defer cancel()
	err := g.Guest().PowerOff(ctx)
	if err == nil {
		return true
	}
	select {
	case <-machine.Done(): // so fast that the answer was lost
		return false
	default:
		v.logf("the agent did not take the power off: %v", err)
	}
	return v.pressPower(machine)
}

// pressPower reports whether the machine has a power button that was pressed now.
func (v *VM) pressPower(machine Machine) bool {
	b, ok := machine.(PowerButton)
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(v.m.ctx, powerOffWait)
	defer cancel()
	err := b.PressPower(ctx)
	if err != nil && !errors.Is(err, ErrUnsupported) {
		v.logf("the power button cannot be pressed: %v", err)
	}
	return err == nil
}

func (v *VM) kill(context.Context) error {
	machine := v.Snapshot().Machine
	if err := v.enter(Stopping, nil); err != nil {
		return err
	}
	return v.finish(machine)
}

// finish ends the process, whatever ctx says: a stop that was given up for a
// kill leaves the state stopping, which the kill takes up.
func (v *VM) finish(machine Machine) error {
	select {
	case <-machine.Done():
	default:
		if err := machine.Kill(v.m.ctx); err != nil {
			return fmt.Errorf("cannot end %s: %w", v.Snapshot().Name, err)
		}
	}
	return v.enter(Stopped, ended(""))
}

func (v *VM) restart(ctx context.Context) error {
	if err := v.stop(ctx); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("the restart of %s was given up: %w", v.Snapshot().Name, ErrGone)
	}
	return v.start(ctx)
}

func (v *VM) pause(ctx context.Context) error {
	return v.halt(ctx, Paused, func(p Pauser) error { return p.Pause(ctx) })
}

// full reports whether the VMM stopped the CPUs because a disk found no space on the host.
func (v *VM) full() bool {
	f, ok := v.Snapshot().Machine.(Fuller)
	return ok && f.Full()
}

func (v *VM) resume(ctx context.Context) error {
	return v.halt(ctx, Running, func(p Pauser) error { return p.Resume(ctx) })
}

func (v *VM) halt(ctx context.Context, to State, do func(Pauser) error) error {
	s := v.Snapshot()
	p, ok := s.Machine.(Pauser)
	if !ok {
		return fmt.Errorf("%s cannot be paused: %w", s.Name, ErrUnsupported)
	}
	if err := do(p); err != nil {
		return fmt.Errorf("cannot make %s %s: %w", s.Name, to, err)
	}
	return v.enter(to, func(s *Snapshot) { s.Error = "" })
}

// greet waits, in the background, until the agent of a new machine answers,
// and tells the guest who it is.
func (v *VM) greet(machine Machine) {
	g, ok := machine.(Guester)
	if !ok {
		return
	}
	v.m.spawn(func() {
		ctx, cancel := context.WithCancel(v.m.ctx)
		defer cancel()
		stop := make(chan struct{})
		defer close(stop)
		go func() { // ends with this function: stop is closed
			select {
			case <-machine.Done():
			case <-v.m.closing:
			case <-stop:
			}
			cancel()
		}()
		for wait := greetAgain; ; wait = min(2*wait, greetAtLast) {
			err := v.introduce(ctx, g.Guest())
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return
			}
			v.logf("the agent was not told its settings, trying again: %v", err)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
		v.publish(func(s *Snapshot) {
			if s.Machine == machine {
				s.Ready, s.ReadyIn = true, time.Since(s.Since)
			}
		})
	})
}

// introduce waits for the agent and sets host name, address and clock.
func (v *VM) introduce(ctx context.Context, g Guest) error {
	if _, err := g.Ping(ctx); err != nil {
		return err
	}
	c := v.guestConfig()
	s := v.Snapshot()
	c.AuthorizedKeys = keysFor(&s.Config)
	key, err := v.hostKey()
	if err != nil { // it may do without: a disk that is full must not keep a guest from its address
		v.m.o.Log.Error("cannot keep an ssh host key for a VM", "vm", s.Name, "err", err)
	}
	c.HostKey = key
	c.Time = time.Now()
	ctx, cancel := context.WithTimeout(ctx, configureWait)
	defer cancel()
	return g.Configure(ctx, c)
}

// guestConfig is who the guest is, also of one that is only starting; the time and the keys are left to the moment of telling.
func (v *VM) guestConfig() GuestConfig {
	s := v.Snapshot()
	c := GuestConfig{Hostname: s.Name, MAC: s.MAC}
	if s.Config.Net == NetBridge && s.Address.IsValid() {
		c.Address = netip.PrefixFrom(s.Address, v.m.o.Network.Prefix().Bits())
		c.Gateway = v.m.o.Network.Gateway()
		c.Address6, c.Gateway6 = v.m.o.Network.Address6(s.Address), v.m.o.Network.Gateway6()
		c.MTU = v.m.o.Network.MTU()
		c.DNS = v.m.o.DNS
	} else if s.Config.Net == NetUser {
		c.Address, c.Gateway, c.DNS = UserAddress, UserGateway, []netip.Addr{UserDNS}
	}
	return c
}

// recover finds out what became of a VM that was not stopped when the daemon before this one ended.
func (v *VM) recover(ctx context.Context) error {
	s := v.Snapshot()
	if s.BootID != v.m.bootID {
		return v.enter(Stopped, ended(""))
	}
	driver := v.m.drivers[s.Config.VMM]
	if driver == nil {
		return v.enter(Failed, ended(fmt.Sprintf("vmm %s, which ran it, is not here any more", s.Config.VMM)))
	}
	image, err := v.m.o.Images.Image(s.Config.Image)
	if err != nil {
		v.m.o.Log.Warn("the image of a running VM is gone", "vm", s.Name, "image", s.Config.Image)
	}
	spec := v.spec(image)
	log, err := v.openLog()
	if err != nil {
		return v.enter(Stopped, ended("")) // it never had a directory, so nothing ran
	}
	defer log.Close()
	spec.Log, spec.LogFile = log, log
	machine, err := driver.Adopt(ctx, spec, s.Process, v.notify)
	switch {
	case errors.Is(err, ErrNotFound) && (s.State == Starting || s.State == Stopping):
		return v.enter(Stopped, ended(""))
	case errors.Is(err, ErrNotFound):
		return v.enter(Failed, ended("the VMM died while no daemon ran"))
	case err != nil:
		return v.enter(Failed, ended(fmt.Sprintf("cannot take over its VMM: %v", err)))
	}
	state := Running
	if p, ok := machine.(interface{ Paused() bool }); ok && p.Paused() {
		state = Paused
	}
	v.publish(func(now *Snapshot) {
		now.Machine = machine
		if _, unwired := driver.(Unwired); !unwired && s.Address.IsValid() {
			now.Address6 = v.m.o.Network.Address6(s.Address).Addr()
		}
	})
	if s.State == Stopping {
		return v.finish(machine)
	}
	complaint := v.reconnect(ctx)
	err = v.enter(state, func(now *Snapshot) {
		now.Machine, now.Process = machine, machine.Process()
		if complaint != nil {
			now.Error = complaint.Error()
		}
		if now.Started.IsZero() || s.State == Starting {
			now.Started = time.Now()
		}
		// From here on by the monotonic clock, what the record knows by the wall's as well.
		at := time.Now()
		now.Since = at.Add(-at.Sub(now.Started))
		if !now.Touched.IsZero() {
			now.Touched = at.Add(-at.Sub(now.Touched))
		}
	})
	if err != nil {
		return err
	}
	v.logf("adopted process %d", machine.Process().PID)
	select {
	case <-machine.Done(): // before anybody could be told
		v.m.spawn(v.exited)
	default:
		v.greet(machine)
	}
	return nil
}
