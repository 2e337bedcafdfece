package vmm

import (
	"context"
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
