package vmm

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// turn is the right to change a VM's record: one holder at a time, and no reader waits for it. The
// holder commits what it has made of the VM, and releases the turn.
type turn struct{ vm *VM }

// draft is what the holder of a turn makes of a VM. Commit keeps the record durably and then shows
// the whole draft. What changes without the turn, the last use and the last error, is not replaced
// by the record, which may be older.
type draft struct {
	Record
	run     *CurrentRun // replaces the run, if not nil
	failure *string     // replaces the last error, if not nil
}

// fail replaces the last error.
func (d *draft) fail(sentence string) { d.Error, d.failure = sentence, &sentence }

func (d *draft) show(s *Snapshot) {
	touched, failure := s.Touched, s.Error
	s.Record = d.Record
	s.Touched, s.Error = touched, failure
	if d.failure != nil {
		s.Error = *d.failure
	}
	if d.run != nil {
		s.CurrentRun = *d.run
	}
}

// acquire waits for the turn until ctx ends. ErrNotFound once the VM is removed.
func (v *VM) acquire(ctx context.Context) (turn, error) {
	select {
	case v.own <- struct{}{}:
	case <-ctx.Done():
		return turn{}, context.Cause(ctx)
	}
	t := turn{v}
	if v.gone() {
		t.release()
		return turn{}, ErrNotFound
	}
	return t, nil
}

// tryAcquire takes the turn if nobody has it.
func (v *VM) tryAcquire() (turn, bool) {
	select {
	case v.own <- struct{}{}:
	default:
		return turn{}, false
	}
	t := turn{v}
	if v.gone() {
		t.release()
		return turn{}, false
	}
	return t, true
}

func (t turn) release() { <-t.vm.own }

// draft returns a draft that changes nothing yet.
func (t turn) draft() *draft { return &draft{Record: t.vm.Snapshot().Record} }

// commit goes on when ctx ends. After an error nothing is changed.
func (t turn) commit(ctx context.Context, d *draft) error {
	if err := t.vm.m.o.Store.Update(context.WithoutCancel(ctx), &d.Record); err != nil {
		return fmt.Errorf("cannot record it: %w", err)
	}
	t.vm.publish(d.show)
	return nil
}

// update commits one change. ctx bounds the wait for the turn, not the write.
func (v *VM) update(ctx context.Context, change func(*draft) error) error {
	t, err := v.acquire(ctx)
	if err != nil {
		return err
	}
	defer t.release()
	d := t.draft()
	if err := change(d); err != nil {
		return err
	}
	return t.commit(ctx, d)
}

// shownWait bounds the wait for the end of a transition whose result is shown already.
const shownWait = 100 * time.Millisecond

// turnWait bounds the wait for the turn, which is held over a commit.
const turnWait = 2 * time.Second

// acquireDown takes the turn of a VM that is stopped or failed and about which no command is under
// way. ErrBusy otherwise, at once: the caller holds a lock of the kernel for which others wait. A
// transition that has stopped the VM, and has nothing left to do, is waited for a moment. claim
// runs before any other command can begin.
func (v *VM) acquireDown(ctx context.Context, claim func(*Snapshot) error) (turn, error) {
	late := fmt.Errorf("a change of it takes long, try again: %w", ErrBusy)
	ctx, cancel := context.WithTimeoutCause(ctx, turnWait, late)
	defer cancel()
	for {
		busy, err := v.claimDown(func(*Snapshot) error { return nil })
		if err == nil && busy == nil {
			t, err := v.acquire(ctx)
			if err != nil {
				return turn{}, err
			}
			busy, err = v.claimDown(claim)
			if err == nil && busy == nil {
				return t, nil
			}
			t.release()
			if err != nil {
				return turn{}, err
			}
		}
		if err != nil {
			return turn{}, err
		}
		select {
		case <-busy.done:
		case <-time.After(shownWait):
			return turn{}, busy.refusal()
		case <-ctx.Done():
			return turn{}, context.Cause(ctx)
		}
	}
}

// claimDown calls claim if the VM is stopped or failed and no command is under way. Otherwise it
// returns an error, or the transition that has just stopped the VM.
func (v *VM) claimDown(claim func(*Snapshot) error) (*transition, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, busy := v.Snapshot(), v.busy
	switch {
	case v.removed:
		return nil, ErrNotFound
	case s.checkDown() != nil:
		return nil, s.checkDown()
	case busy == nil:
		return nil, claim(s)
	case busy.shown:
		return busy, nil
	}
	return nil, busy.refusal()
}

// checkDown refuses a VM that is neither stopped nor failed.
func (s *Snapshot) checkDown() error {
	if s.State.Down() {
		return nil
	}
	return fmt.Errorf("it is %s: stop it first: %w", s.State, ErrBusy)
}

// refusal is the error for a command that does not wait for the transition.
func (t *transition) refusal() error {
	return fmt.Errorf("its %s is under way, wait for its end: %w", t.command, ErrBusy)
}

func (v *VM) gone() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.removed
}

// saveTouched records the last use. It does not wait for the turn: the use is recorded a minute
// later then.
func (v *VM) saveTouched(ctx context.Context) {
	t, ok := v.tryAcquire()
	if !ok {
		return
	}
	defer t.release()
	d := t.draft()
	if d.Touched.Equal(v.saved) {
		return
	}
	err := t.commit(ctx, d)
	if err == nil {
		v.saved = d.Touched
	} else if !errors.Is(err, ErrNotFound) {
		v.m.o.Log.Error("cannot record the last use", "vm", d.Name, "err", err)
	}
}
