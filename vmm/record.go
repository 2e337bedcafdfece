package vmm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// VM is one virtual machine. All methods may be called from many goroutines.
type VM struct {
	m      *Manager // immutable, as are serial and own
	serial uint64
	own    chan struct{} // held by whoever writes the record; never by a reader

	snap   atomic.Pointer[Snapshot]
	events eventLog
	users  atomic.Int32              // who uses it for longer than a moment
	public atomic.Pointer[string]    // HostKey, once it was read
	used   atomic.Pointer[time.Time] // the last use; nil: Touched of the snapshot

	mu      sync.Mutex    // guards what follows, and every change of snap
	changed chan struct{} // closed at the next snapshot; nil while nobody waits
	busy    *transition
	removed bool
	health  string
	saved   time.Time // the time of use that is durable
}

func (m *Manager) newVM(r Record) *VM {
	v := &VM{m: m, serial: r.Serial, own: make(chan struct{}, 1), saved: r.Touched}
	s := &Snapshot{Record: r, Dir: filepath.Join(m.vmsDir, r.ID)}
	v.snap.Store(s)
	v.indexAddresses(&Snapshot{}, s)
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

// publish shows everybody a changed copy of the snapshot.
func (v *VM) publish(change func(*Snapshot)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := *v.Snapshot()
	change(&s)
	s.Named = v.m.named.Load()
	old := v.Snapshot()
	if s.State != old.State && v.busy != nil {
		v.busy.shown = s.State == Stopped || s.State == Failed
	}
	s.stamp(old)
	v.snap.Store(&s)
	v.indexAddresses(old, &s)
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

var errUnchanged = errors.New("nothing to change")

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

// shownWait bounds the wait for the end of a transition whose result is shown already.
const shownWait = 100 * time.Millisecond

// turnWait bounds the wait for the turn to write the record, which is held over a commit.
const turnWait = 2 * time.Second

// ownDown takes the turn to write the record of a VM that is stopped or failed and about which no
// command is under way. ErrBusy otherwise, at once: who calls it holds a lock of the kernel for
// which others wait. A transition that has stopped the VM, and has nothing left to do, is waited
// for a moment. claim runs before any other command can begin. Without an error the caller gives
// the turn back.
func (v *VM) ownDown(ctx context.Context, claim func(*Snapshot) error) error {
	late := fmt.Errorf("a change of it takes long, try again: %w", ErrBusy)
	ctx, cancel := context.WithTimeoutCause(ctx, turnWait, late)
	defer cancel()
	for {
		busy, err := v.claimDown(func(*Snapshot) error { return nil })
		if err == nil && busy == nil {
			select {
			case v.own <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if busy, err = v.claimDown(claim); err == nil && busy == nil {
				return nil
			}
			<-v.own
		}
		if err != nil {
			return err
		}
		select {
		case <-busy.done:
		case <-time.After(shownWait):
			return fmt.Errorf("its %s is under way, wait for its end: %w", busy.command, ErrBusy)
		case <-ctx.Done():
			return context.Cause(ctx)
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
	case s.State != Stopped && s.State != Failed:
		return nil, fmt.Errorf("it is %s: stop it first: %w", s.State, ErrBusy)
	case busy == nil:
		return nil, claim(s)
	case busy.shown:
		return busy, nil
	}
	return nil, fmt.Errorf("its %s is under way, wait for its end: %w", busy.command, ErrBusy)
}

func (v *VM) gone() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.removed
}

// Chown changes the owner. change makes the new one of that at the moment, or refuses.
func (v *VM) Chown(ctx context.Context, change func(Owner) (Owner, error)) error {
	return v.update(ctx, func(s *Snapshot) (err error) {
		s.Owner, err = change(s.Owner)
		return err
	})
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
