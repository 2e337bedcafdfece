package vmm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// transition is a command under way. err is valid once done is closed.
type transition struct {
	command Command
	cancel  context.CancelFunc
	done    chan struct{}
	err     error

	// Guarded by VM.mu.
	shown    bool    // it has stopped the VM, or the VM has failed
	follower Command // what Accept has left to a goroutine until this has ended
}

func (v *VM) transition() *transition {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.busy
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

// errLate ends the wait of Accept.
var errLate = errors.New("the transition under way takes long")

// Accept gives the command and returns once the transition has begun (or was refused). It waits for
// a transition that has shown its result already, and for no other: ErrBusy. A command that gives
// up what is under way is accepted all the same, and follows when that has ended.
func (v *VM) Accept(ctx context.Context, c Command) error {
	moment, cancel := context.WithTimeoutCause(ctx, shownWait, errLate)
	defer cancel()
	t, err := v.begin(moment, c)
	if errors.Is(err, errLate) {
		return v.follow(c)
	}
	if t == nil {
		return v.nothingToDo(err)
	}
	return err
}

// follow leaves a command that gave up the transition under way to a goroutine. It refuses others.
func (v *VM) follow(c Command) error {
	v.mu.Lock()
	s, busy := v.Snapshot(), v.busy
	ends := c.ends(s.State)
	again := busy != nil && busy.follower == c
	if busy != nil && ends {
		busy.follower = c
	}
	v.mu.Unlock()
	switch {
	case again:
		return nil
	case !ends && busy != nil:
		return fmt.Errorf("cannot %s %s: %w", c, s.Name, busy.refusal())
	case !ends:
		return fmt.Errorf("cannot %s %s: it has just changed, try again: %w", c, s.Name, ErrBusy)
	}
	spawned := v.m.spawn(func() {
		if err := v.Do(v.m.ctx, c); err != nil && v.m.ctx.Err() == nil {
			v.Fail(err)
		}
	})
	if !spawned {
		return fmt.Errorf("cannot %s %s: the daemon is ending: %w", c, s.Name, ErrBusy)
	}
	return nil
}

// ends reports whether the command gives up a transition that is under way.
func (c Command) ends(state State) bool { return c == Kill || c == Stop && state == Starting }

// nothingToDo is the end of a command that began no transition: unless it was refused, it has succeeded.
func (v *VM) nothingToDo(err error) error {
	if err == nil {
		v.Fail(nil)
	}
	return err
}

// during runs work as a transition of its own, which other commands wait for. Its errors are said to be of doing.
func (v *VM) during(ctx context.Context, c Command, doing string, work func(context.Context) error) error {
	t, err := v.beginWork(ctx, c, func(State) (func(context.Context) error, error) {
		return func(ctx context.Context) error {
			if err := work(ctx); err != nil {
				return fmt.Errorf("%s: %w", doing, err)
			}
			return nil
		}, nil
	})
	if err != nil {
		return err
	}
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// try gives the command if nothing else is under way, and reports whether it did; it does not
// block.
func (v *VM) try(c Command) bool {
	ctx, cancel := context.WithCancel(v.m.ctx)
	cancel() // nothing is waited for
	err := v.Accept(ctx, c)
	if err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, context.Canceled) {
		v.m.o.Log.Error("a command of the daemon's own was refused", "vm", v.Snapshot().Name, "command", string(c), "err", err)
	}
	return err == nil
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
		case c.ends(state):
			busy.cancel()
			changed = nil // only its end will do
		case state == Starting || state == Stopping:
			return nil, fmt.Errorf("cannot %s %s: %w", c, name, busy.refusal())
		}
		// Otherwise the transition has just begun or has shown its result already: it is worth the moment.
		select {
		case <-changed:
		case <-busy.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
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

// action is what a command means in a state.
type action struct {
	run    func(*VM, context.Context) error // nil: nothing is to be done
	only   func(*VM) bool                   // unless nil: run is for VMs of which this is true
	refuse error                            // unless nil: why nothing can be done
}

// What commands do. A VM is starting or stopping without a transition only where the end of one
// could not be recorded, or its process does not end.
var (
	nothing     = action{}
	startIt     = action{run: (*VM).start}
	restartIt   = action{run: (*VM).restart}
	stopIt      = action{run: (*VM).stop}
	killIt      = action{run: (*VM).kill}
	settleIt    = action{run: (*VM).settle}
	pauseIt     = action{run: (*VM).pause}
	pauseFull   = action{run: (*VM).pause, only: (*VM).full} // so that it does not go on by itself
	resumeIt    = action{run: (*VM).resume}
	recoverIt   = action{run: (*VM).recoverAgain}
	notRunning  = action{refuse: ErrNotRunning}
	notPossible = action{refuse: ErrBusy}
)

// commandStates are the columns of actions.
var commandStates = []State{Stopped, Failed, Starting, Running, Paused, Stopping}

// actions are what each command means in each state while no transition is under way.
var actions = map[Command][]action{
	Start:   {startIt, startIt, recoverIt, nothing, resumeIt, notPossible},
	Restart: {startIt, startIt, recoverIt, restartIt, restartIt, restartIt},
	Stop:    {nothing, settleIt, recoverIt, stopIt, stopIt, stopIt},
	Kill:    {nothing, settleIt, recoverIt, killIt, killIt, killIt},
	Pause:   {notRunning, notRunning, recoverIt, pauseIt, pauseFull, notPossible},
	Resume:  {notRunning, notRunning, recoverIt, nothing, resumeIt, notPossible},
}

// plan returns the work that c means in this state, nil for nothing, or a refusal.
func (v *VM) plan(c Command, state State) (func(context.Context) error, error) {
	row := actions[c]
	if row == nil {
		return nil, fmt.Errorf("%q is not a command; these are: start stop restart kill pause resume: %w", c, ErrInvalid)
	}
	if state.Alive() && v.Snapshot().Machine == nil {
		return v.recoverAgain, nil
	}
	a := notPossible
	if i := slices.Index(commandStates, state); i >= 0 {
		a = row[i]
	}
	if a.refuse != nil {
		return nil, fmt.Errorf("cannot %s %s: it is %s: %w", c, v.Snapshot().Name, state, a.refuse)
	}
	if a.run == nil || a.only != nil && !a.only(v) {
		return nil, nil
	}
	return func(ctx context.Context) error { return a.run(v, ctx) }, nil
}

// enter records and shows a new state.
func (v *VM) enter(state State, change func(*draft)) error {
	return v.enterWith(state, func(d *draft) error {
		if state.Down() {
			v.m.o.Network.Disconnect(v.serial)
		}
		if change != nil {
			change(d)
		}
		return nil
	})
}

// enterWith is enter with a change that may refuse.
func (v *VM) enterWith(state State, change func(*draft) error) error {
	err := v.update(context.Background(), func(d *draft) error {
		d.State, d.StopBy = state, time.Time{}
		return change(d)
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
func ended(reason string) func(*draft) {
	return func(d *draft) {
		d.Process, d.run = Process{}, &CurrentRun{}
		d.fail(reason)
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

// counted are the transitions that Transitions tells apart; exit is the end of a machine that
// nobody asked to end. Adoptions are not among them.
var counted = [...]Command{Start, Stop, Restart, Kill, Pause, Resume, exit, Take, Drop, Restore, Export}

// Transitions is how often a command's transition has ended since the daemon's start.
type Transitions struct {
	Command      Command
	Done, Failed uint64
}

// Transitions counts by command.
func (m *Manager) Transitions() []Transitions {
	all := make([]Transitions, len(counted))
	for i, c := range counted {
		all[i] = Transitions{c, m.counts[i].done.Load(), m.counts[i].failed.Load()}
	}
	return all
}

func (m *Manager) count(c Command, err error) {
	i := slices.Index(counted[:], c)
	if i < 0 {
		return
	}
	if err == nil {
		m.counts[i].done.Add(1)
	} else {
		m.counts[i].failed.Add(1)
	}
}
