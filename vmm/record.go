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
	users  atomic.Int32           // who uses it for longer than a moment
	public atomic.Pointer[string] // HostKey, once it was read

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

func (v *VM) gone() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.removed
}

// Chown changes the owner; the caller has checked that it may.
func (v *VM) Chown(ctx context.Context, owner Owner) error {
	return v.update(ctx, func(s *Snapshot) error {
		s.Owner = owner
		return nil
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
