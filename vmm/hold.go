package vmm

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A held VM lives as long as its holder does, such as a process that has a file open. The record
// says that the VM is held, so that a daemon's end loses neither the VM nor its removal.

// holderWait is how long after Open a held VM waits for a holder. Tests change it.
var holderWait = 30 * time.Second

// leaveAgain is the pause between attempts to remove a VM whose holder is gone.
const leaveAgain = time.Second

// CreateHeld is Create of a VM that the caller holds. The caller calls LetGo.
func (m *Manager) CreateHeld(ctx context.Context, name string, owner Owner) (*VM, error) {
	return m.create(ctx, name, owner, true)
}

// Hold makes the caller the holder of the VM, durably. After a nil error the caller calls LetGo.
// ErrBusy if the VM has a holder or is being removed, ErrProtected, ErrNotFound.
func (v *VM) Hold(ctx context.Context, may Permit) error {
	name := v.Snapshot().Name
	v.mu.Lock()
	taken := v.holder || v.leaving
	if !taken {
		v.holder = true
	}
	v.mu.Unlock()
	if taken {
		return fmt.Errorf("cannot hold %s: it has a holder: %w", name, ErrBusy)
	}
	err := v.update(ctx, func(d *draft) error {
		if err := may.ask(d.Owner); err != nil {
			return err
		}
		if d.Config.Protected {
			return fmt.Errorf("write 0 to its file protected first: %w", ErrProtected)
		}
		d.Held = true
		return nil
	})
	if err != nil {
		v.mu.Lock()
		v.holder = false
		v.mu.Unlock()
		return fmt.Errorf("cannot hold %s: %w", name, err)
	}
	return nil
}

// LetGo ends the hold: the VM is killed and removed in the background. It does not block. When the
// Manager is closing, the next one does it.
func (v *VM) LetGo() {
	v.mu.Lock()
	v.holder, v.leaving = false, true
	v.mu.Unlock()
	v.m.spawn(v.leave)
}

// awaitHolders lets go, after a while, of held VMs of an earlier daemon that have no holder.
func (m *Manager) awaitHolders() {
	var held []*VM
	for _, v := range m.VMs() {
		if v.Snapshot().Held {
			held = append(held, v)
		}
	}
	if len(held) == 0 {
		return
	}
	m.spawn(func() {
		select {
		case <-m.closing:
			return
		case <-time.After(holderWait):
		}
		for _, v := range held {
			v.mu.Lock()
			gone := !v.holder && !v.leaving
			v.leaving = v.leaving || gone
			v.mu.Unlock()
			if gone {
				m.spawn(v.leave)
			}
		}
	})
}

// leave kills and removes the VM. It tries until that is done, the VM is protected, or the Manager
// closes: a user may start it again, and a process may take long to end.
func (v *VM) leave() {
	v.m.o.Log.Info("removing a VM whose holder is gone", "vm", v.Snapshot().Name)
	for reported := false; ; {
		err := v.killAndRemove()
		switch {
		case v.m.ctx.Err() != nil:
			return
		case err == nil || v.m.BySerial(v.serial) == nil:
			v.acted(ActRemove, nil)
			return
		case errors.Is(err, ErrProtected):
			v.m.o.Log.Warn("a protected VM stays without its holder", "vm", v.Snapshot().Name)
			return
		case !reported:
			reported = true
			v.Fail(err)
			v.m.o.Log.Error("cannot remove a VM whose holder is gone, trying again",
				"vm", v.Snapshot().Name, "err", err)
		}
		select {
		case <-time.After(leaveAgain):
		case <-v.m.closing:
			return
		}
	}
}

// killAndRemove destroys the VM. A protected VM goes on, without a hold.
func (v *VM) killAndRemove() error {
	if v.Snapshot().Config.Protected {
		err := v.update(v.m.ctx, func(d *draft) error {
			d.Held = false
			return nil
		})
		if err != nil {
			return err
		}
		v.mu.Lock()
		v.leaving = false
		v.mu.Unlock()
		return ErrProtected
	}
	if err := v.Do(v.m.ctx, Kill); err != nil {
		return err
	}
	return v.m.Remove(v.m.ctx, v.Snapshot().Name, nil)
}
