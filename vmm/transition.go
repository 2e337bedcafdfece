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
	follower Command // the command that Accept has left to a goroutine until this one ends
}

// work is the body of a transition. Its context ends when the transition is cancelled, or when the
// Manager stops waiting for it.
type work func(context.Context) error

// plan returns the work for a state, nil if nothing is to be done, or a refusal. It is called under
// VM.mu.
type plan func(State) (work, error)

// wait returns the transition's result, or ctx's error when ctx ends first.
func (t *transition) wait(ctx context.Context) error {
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (v *VM) transition() *transition {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.busy
}

// Do carries out a command and waits for its end. When ctx ends first, Do returns ctx's error and
// the transition goes on.
func (v *VM) Do(ctx context.Context, c Command) error {
	t, err := v.begin(ctx, c, v.plan(c))
	if t == nil {
		return v.nothingToDo(err)
	}
	return t.wait(ctx)
}

// errLate ends the wait of Accept.
var errLate = errors.New("the transition under way takes long")

// Accept begins a command and returns once its transition has begun, or was refused. It waits only
// for a transition that has shown its result; others are ErrBusy. A command that cancels the
// transition under way is accepted all the same, and follows when that has ended.
func (v *VM) Accept(ctx context.Context, c Command) error {
	moment, cancel := context.WithTimeoutCause(ctx, shownWait, errLate)
	defer cancel()
	t, err := v.begin(moment, c, v.plan(c))
	if errors.Is(err, errLate) {
		return v.follow(c)
	}
	if t == nil {
		return v.nothingToDo(err)
	}
	return err
}

// follow leaves a command that cancels the transition under way to a goroutine. It refuses others.
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

// ends reports whether the command cancels a transition that is under way.
func (c Command) ends(state State) bool { return c == Kill || c == Stop && state == Starting }

// nothingToDo is the result of a command that began no transition. Without a refusal the command
// has succeeded, which clears the last error.
func (v *VM) nothingToDo(err error) error {
	if err == nil {
		v.Fail(nil)
	}
	return err
}

// during runs do as a transition of its own and waits for it. doing introduces its errors.
func (v *VM) during(ctx context.Context, c Command, doing string, do work) error {
	t, err := v.begin(ctx, c, func(State) (work, error) {
		return func(ctx context.Context) error {
			if err := do(ctx); err != nil {
				return fmt.Errorf("%s: %w", doing, err)
			}
			return nil
		}, nil
	})
	if err != nil {
		return err
	}
	return t.wait(ctx)
}

// after runs what a plan returns once no transition is under way, and waits for its end.
func (v *VM) after(c Command, p plan) error {
	for {
		v.mu.Lock()
		busy := v.busy
		if busy == nil {
			t, err := v.planLocked(c, p)
			v.mu.Unlock()
			if t == nil {
				return err
			}
			return t.wait(v.m.ctx)
		}
		v.mu.Unlock()
		select {
		case <-busy.done:
		case <-v.m.ctx.Done():
			return v.m.ctx.Err()
		}
	}
}

// try begins a command of the daemon's own if no transition is under way, and reports whether it
// did. It does not block.
func (v *VM) try(c Command) bool {
	ctx, cancel := context.WithCancel(v.m.ctx)
	cancel() // Accept waits for nothing
	err := v.Accept(ctx, c)
	if err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, context.Canceled) {
		v.m.o.Log.Error("a command of the daemon's own was refused",
			"vm", v.Snapshot().Name, "command", string(c), "err", err)
	}
	return err == nil
}

// begin begins the transition that the plan returns, or returns nil when nothing is to be done. It
// cancels a transition under way, or waits for one that changes soon, or refuses.
func (v *VM) begin(ctx context.Context, c Command, p plan) (*transition, error) {
	name := v.Snapshot().Name
	for {
		v.mu.Lock()
		state, busy := v.Snapshot().State, v.busy
		if v.removed {
			v.mu.Unlock()
			return nil, fmt.Errorf("cannot %s %s: %w", c, name, ErrNotFound)
		}
		if busy == nil {
			t, err := v.planLocked(c, p)
			v.mu.Unlock()
			return t, err
		}
		changed := v.changedLocked()
		v.mu.Unlock()
		switch {
		case c.ends(state):
			busy.cancel()
			changed = nil // only its end matters
		case state == Starting || state == Stopping:
			return nil, fmt.Errorf("cannot %s %s: %w", c, name, busy.refusal())
		}
		// Otherwise the transition has just begun, or is about to end.
		select {
		case <-changed:
		case <-busy.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// planLocked begins the transition that the plan returns for the VM's state.
func (v *VM) planLocked(c Command, p plan) (*transition, error) {
	do, err := p(v.Snapshot().State)
	if err != nil || do == nil {
		return nil, err
	}
	return v.launchLocked(c, do)
}

// launchLocked runs a transition in a goroutine of its own.
func (v *VM) launchLocked(c Command, do work) (*transition, error) {
	ctx, cancel := context.WithCancel(v.m.ctx)
	t := &transition{command: c, cancel: cancel, done: make(chan struct{})}
	ok := v.m.spawn(func() {
		defer cancel()
		t.err = do(ctx)
		v.m.count(c, t.err)
		v.mu.Lock()
		v.busy = nil
		v.mu.Unlock()
		close(t.done)
	})
	if !ok {
		cancel()
		return nil, fmt.Errorf("cannot %s %s: the daemon is ending: %w",
			c, v.Snapshot().Name, ErrBusy)
	}
	v.busy = t
	return t, nil
}

// action is what a command means in a state.
type action struct {
	run    func(*VM, context.Context) error // nil: nothing is to be done
	only   func(*VM) bool                   // unless nil: nothing is to be done if this is false
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
	pauseFull   = action{run: (*VM).pause, only: (*VM).full} // it would resume by itself otherwise
	resumeIt    = action{run: (*VM).resume}
	recoverIt   = action{run: (*VM).recoverAgain}
	notRunning  = action{refuse: ErrNotRunning}
	notPossible = action{refuse: ErrBusy}
)

// actions are what each command means while no transition is under way. The columns are those of
// States.
var actions = map[Command][]action{
	Start:   {startIt, startIt, recoverIt, nothing, resumeIt, notPossible},
	Restart: {startIt, startIt, recoverIt, restartIt, restartIt, restartIt},
	Stop:    {nothing, settleIt, recoverIt, stopIt, stopIt, stopIt},
	Kill:    {nothing, settleIt, recoverIt, killIt, killIt, killIt},
	Pause:   {notRunning, notRunning, recoverIt, pauseIt, pauseFull, notPossible},
	Resume:  {notRunning, notRunning, recoverIt, nothing, resumeIt, notPossible},
}

// plan returns the plan of a user's command.
func (v *VM) plan(c Command) plan {
	return func(state State) (work, error) {
		row := actions[c]
		if row == nil {
			return nil, fmt.Errorf("%q is not a command; these are: "+
				"start stop restart kill pause resume: %w", c, ErrInvalid)
		}
		if state.Alive() && v.Snapshot().Machine == nil {
			return v.recoverAgain, nil
		}
		a := notPossible
		if i := slices.Index(States, state); i >= 0 {
			a = row[i]
		}
		if a.refuse != nil {
			return nil, fmt.Errorf("cannot %s %s: it is %s: %w",
				c, v.Snapshot().Name, state, a.refuse)
		}
		if a.run == nil || a.only != nil && !a.only(v) {
			return nil, nil
		}
		return func(ctx context.Context) error { return a.run(v, ctx) }, nil
	}
}

// enter records and shows a new state. That a machine has ended is shown even if it cannot be
// recorded: the next daemon finds no machine either, and the next change records it.
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
	again := state == Starting && v.Snapshot().State == Starting // after a reboot
	shown, err := v.commitState(state, change)
	if refused := (*overdraft)(nil); errors.As(err, &refused) {
		return err
	}
	if err != nil {
		err = fmt.Errorf("cannot record that %s is %s: %w", v.Snapshot().Name, state, err)
	}
	if !shown || again {
		return err
	}
	v.m.o.Log.Info("state", "vm", v.Snapshot().Name, "state", state)
	v.logf("%s", state)
	v.emit(EventState, string(state))
	return err
}

// commitState makes a new state durable and shows it. It reports whether it is shown.
func (v *VM) commitState(state State, change func(*draft) error) (bool, error) {
	t, err := v.acquire(context.Background())
	if err != nil {
		return false, err
	}
	defer t.release()
	d := t.draft()
	d.State, d.StopBy = state, time.Time{}
	d.Rebooting = d.Rebooting && state == Starting
	if err := change(d); err != nil {
		return false, err
	}
	err = t.commit(context.Background(), d)
	if err != nil && state.Down() {
		v.publish(d.show)
	}
	return err == nil || state.Down(), err
}

// ended returns the change of a record when a machine is gone.
func ended(reason string) func(*draft) {
	return func(d *draft) {
		d.Process, d.run = Process{}, &CurrentRun{}
		d.fail(reason)
	}
}

// enterFailed records that the VM failed. The reason becomes the last error and an event.
func (v *VM) enterFailed(reason string) error {
	err := v.enter(Failed, ended(reason))
	if v.Snapshot().State == Failed {
		v.emit(EventError, reason)
	}
	return err
}

// fails records that the VM failed for this reason, and returns it.
func (v *VM) fails(reason error) error {
	if err := v.enterFailed(reason.Error()); err != nil {
		return errors.Join(reason, err)
	}
	return reason
}

// settle makes a failed VM a stopped one.
func (v *VM) settle(context.Context) error { return v.enter(Stopped, ended("")) }
