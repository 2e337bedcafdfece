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
	own    chan struct{} // full while the turn is taken
	saved  time.Time     // the last use that is durable; changed by the turn's holder only
	image  footprint     // that charge is by; changed by the turn's holder only
	booted Machine       // the last one whose agent has answered; used by the turn's holder only
	// reboots counts the last runs that each rebooted soon; only a transition uses it.
	reboots int
	charge  charge // guarded by the ledger

	snap   atomic.Pointer[Snapshot]
	events eventLog
	users  atomic.Int32              // counts uses that last, such as sessions
	public atomic.Pointer[string]    // HostKey, once it was read
	used   atomic.Pointer[time.Time] // the last use; nil: Touched of the snapshot

	mu      sync.Mutex    // guards what follows, and every change of snap
	changed chan struct{} // closed at the next snapshot; nil without a waiter
	busy    *transition
	removed bool
	health  string
	clock   guestClock

	followed Machine // the last one that followProgram has followed

	holder  bool // somebody holds it
	leaving bool // its last holder is gone, and it is being removed
}

func (m *Manager) newVM(r Record) *VM {
	v := &VM{m: m, serial: r.Serial, own: make(chan struct{}, 1), saved: r.Touched}
	s := &Snapshot{Record: r, Dir: filepath.Join(m.vmsDir, r.ID)}
	v.snap.Store(s)
	v.indexAddresses(&Snapshot{}, s)
	return v
}

// Serial returns the VM's number, which never changes.
func (v *VM) Serial() uint64 { return v.serial }

// Snapshot returns the VM's present state. It never blocks.
func (v *VM) Snapshot() *Snapshot { return v.snap.Load() }

// Changed returns a channel that is closed when the next snapshot is published.
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

// publish replaces the snapshot by a changed copy and wakes all waiters.
func (v *VM) publish(change func(*Snapshot)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := *v.Snapshot()
	change(&s)
	s.Named = v.m.named.Load()
	old := v.Snapshot()
	if s.State != old.State && v.busy != nil {
		v.busy.shown = s.State.Down()
	}
	s.stamp(old)
	v.snap.Store(&s)
	v.indexAddresses(old, &s)
	if v.changed != nil {
		close(v.changed)
		v.changed = nil
	}
}

// stamp sets the time of change of each file whose value differs from old's.
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

// Chown replaces the owner by what change returns for the present one, unless that is an error.
func (v *VM) Chown(ctx context.Context, change func(Owner) (Owner, error)) error {
	return v.update(ctx, func(d *draft) (err error) {
		d.Owner, err = change(d.Owner)
		return err
	})
}

// Fail shows the sentence of a refused command in `error`; nil clears it. The next
// commit records it.
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

// PublishHealth emits an event if health differs from that of the last call.
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

// LastHealth returns the health of the last PublishHealth, empty before the first. It never blocks.
func (v *VM) LastHealth() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.health
}

// turn is the exclusive right to change a VM's record. No reader waits for it. Its holder commits
// drafts and then releases the turn.
type turn struct{ vm *VM }

// draft is a changed copy of a VM's record and run. commit makes the record durable and then shows
// the whole draft. The last use and the last error change without the turn, so that the record may
// have older ones: commit leaves those that are shown.
type draft struct {
	Record
	run     *CurrentRun // replaces the run, if not nil
	failure *string     // replaces the last error, if not nil
	image   *footprint  // of its image, nil if it is what it was
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
	return v.acquired()
}

// tryAcquire acquires the turn if it is free.
func (v *VM) tryAcquire() (turn, bool) {
	select {
	case v.own <- struct{}{}:
		t, err := v.acquired()
		return t, err == nil
	default:
		return turn{}, false
	}
}

func (v *VM) acquired() (turn, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.removed {
		turn{v}.release()
		return turn{}, ErrNotFound
	}
	return turn{v}, nil
}

func (t turn) release() { <-t.vm.own }

// draft returns a draft that changes nothing yet.
func (t turn) draft() *draft { return &draft{Record: t.vm.Snapshot().Record} }

// commit makes a draft durable and shows it. The write goes on when ctx ends. After an error
// nothing is changed. ErrQuota and ErrNoMemory for a VM that would need more than it may have.
func (t turn) commit(ctx context.Context, d *draft) error {
	c, err := t.vm.claim(&d.Record, d.image)
	if err != nil {
		return err
	}
	return t.commitClaimed(ctx, d, c)
}

// commitClaimed is commit of a draft that is claimed already. It ends the claim.
func (t turn) commitClaimed(ctx context.Context, d *draft, c claim) error {
	if err := t.vm.m.o.Store.Update(context.WithoutCancel(ctx), &d.Record); err != nil {
		t.vm.drop(c)
		return fmt.Errorf("cannot record it: %w", err)
	}
	t.vm.account(c)
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

// shownWait bounds the wait for the end of a transition that has shown its result.
const shownWait = 100 * time.Millisecond

// turnWait bounds the wait for the turn, which is held over a commit.
const turnWait = 2 * time.Second

// acquireDown acquires the turn of a VM that is stopped or failed and has no transition under way.
// Otherwise it returns ErrBusy at once: its caller holds a lock of the kernel that others wait for.
// Only a transition that has stopped the VM is waited for, during shownWait. claim runs before any
// other command can begin.
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

// saveTouched records the last use. If the turn is not free, the next sweep records it.
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
