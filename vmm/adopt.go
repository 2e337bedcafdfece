package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// adoptionsAtOnce bounds what Open asks side by side.
const adoptionsAtOnce = 32

// recoverWait bounds Open's wait for VMs that were not stopped. It is longer than the wait for a
// VMM that does not answer. Tests change it.
var recoverWait = 15 * time.Second

// recover makes VMs of the records and adopts their machines.
func (m *Manager) recover(ctx context.Context, records []Record) error {
	living := make(map[string]bool)
	ids := make(map[string]bool)
	for _, r := range records {
		ids[r.ID] = true
		living[r.ID] = r.State.Alive() || r.State == Starting
	}
	for _, d := range m.o.Drivers {
		err := d.Sweep(ctx, m.o.StateDir, func(id string) bool { return living[id] })
		if err != nil {
			m.o.Log.Error("cannot end leftover machines", "err", err)
		}
	}
	entries, err := os.ReadDir(m.vmsDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !ids[strings.TrimSuffix(e.Name(), movingSuffix)] {
			m.o.Log.Info("deleting the directory of a removed VM", "id", e.Name())
			m.discard(filepath.Join(m.vmsDir, e.Name()))
		}
	}
	images := make(map[string]footprint)
	for _, r := range records {
		m.claims.set(r.Serial, r.Config.Publications())
		image, known := images[r.Config.Image]
		if !known {
			image = m.footprint(r.Config.Image)
			images[r.Config.Image] = image
		}
		v := m.newVM(r)
		v.account(claim{bill: m.bill(&r, image), image: image})
		m.insert(v)
	}
	saved, err := m.o.Store.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, d := range saved {
		if v := m.BySerial(d.Serial); v != nil {
			v.publish(func(s *Snapshot) { s.Saved = append(s.Saved, d) })
			m.ledger.settleSaved(&v.charge, d.Size)
		}
	}
	for _, v := range m.VMs() {
		s := v.Snapshot()
		if err := renew(s.Dir, v.uid()); err != nil { // its next start tries again
			m.o.Log.Error("cannot change the directory of a VM of an earlier banger",
				"vm", s.Name, "err", err)
		}
		if err := removeUnfinished(s.Dir); err != nil {
			m.o.Log.Error("cannot remove an unfinished file of a VM", "vm", s.Name, "err", err)
		}
	}
	if err := m.adopt(ctx); err != nil {
		return err
	}
	return m.o.Network.Settle()
}

// adopt recovers the VMs that were not stopped, side by side. It returns after recoverWait at the
// latest. Longer recoveries go on in the background; commands to those VMs wait or are refused.
func (m *Manager) adopt(ctx context.Context) error {
	slots := make(chan struct{}, adoptionsAtOnce)
	var under []<-chan error
	for _, v := range m.VMs() {
		if v.Snapshot().State.Down() {
			continue
		}
		recovered, err := v.adopt(slots)
		if err != nil {
			return err
		}
		under = append(under, recovered)
	}
	timer := time.NewTimer(recoverWait)
	defer timer.Stop()
	var errs []error
	for i, recovered := range under {
		select {
		case err := <-recovered:
			errs = append(errs, err)
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			m.o.Log.Error("VMs take long to recover, going on without them", "vms", len(under)-i)
			m.spawn(func() {
				for _, recovered := range under[i:] {
					if err := <-recovered; err != nil {
						m.o.Log.Error("a VM was not recovered", "err", err)
					}
				}
			})
			return errors.Join(errs...)
		}
	}
	return errors.Join(errs...)
}

// adopt begins the recovery of a VM and then goes on with a stop or a reboot that was under way.
// The channel receives the result of the recovery.
func (v *VM) adopt(slots chan struct{}) (<-chan error, error) {
	recovered := make(chan error, 1)
	command := adopt
	switch s := v.Snapshot(); {
	case s.State == Stopping:
		command = Stop
	case s.Rebooting:
		command = reboot
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	_, err := v.launchLocked(command, func(ctx context.Context) error {
		err := v.recoverIn(slots) // a kill waits: the machine is not known yet
		recovered <- err
		if err == nil && v.Snapshot().Rebooting {
			return v.resumeReboot(ctx)
		}
		if err != nil || v.Snapshot().State != Stopping {
			return err
		}
		if err = v.resumeStop(ctx); err != nil && !errors.Is(err, ErrGone) {
			v.m.o.Log.Error("cannot end a stop that an earlier daemon began", "err", err)
		}
		return err
	})
	return recovered, err
}

// recoverIn waits for a slot and recovers the VM.
func (v *VM) recoverIn(slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-v.m.ctx.Done():
		return v.m.ctx.Err()
	}
	if err := v.recover(v.m.ctx); err != nil {
		return fmt.Errorf("cannot recover %s: %w", v.Snapshot().Name, err)
	}
	switch v.Snapshot().State {
	case Stopped:
		v.acted(ActEnd, nil)
	case Failed:
		v.acted(ActFail, nil)
	}
	return nil
}

// recoverAgain is the work of every command to a VM that could not be recovered.
func (v *VM) recoverAgain(ctx context.Context) error {
	err := v.recover(v.m.ctx)
	if err == nil && v.Snapshot().Rebooting {
		err = v.resumeReboot(ctx)
	}
	if err == nil && v.Snapshot().State == Stopping {
		err = v.resumeStop(ctx)
	}
	if err != nil {
		return err
	}
	s := v.Snapshot()
	return fmt.Errorf("%s was found to be %s just now: write the command again: %w",
		s.Name, s.State, ErrBusy)
}

// recover adopts the machine of a VM that was not stopped when the last daemon ended, or records
// how the machine ended.
func (v *VM) recover(ctx context.Context) error {
	s := v.Snapshot()
	if s.BootID != v.m.bootID {
		return v.enter(Stopped, ended(""))
	}
	driver := v.m.drivers[s.Config.VMM]
	if driver == nil {
		return v.enter(Failed, ended(fmt.Sprintf("its vmm %s is no longer here", s.Config.VMM)))
	}
	image, err := v.m.o.Images.Image(s.Config.Image)
	if err != nil {
		v.m.o.Log.Warn("the image of a running VM is gone", "vm", s.Name, "image", s.Config.Image)
	}
	spec := v.spec(image)
	switch log, err := v.openLog(); {
	case err == nil:
		defer log.Close()
		spec.Log, spec.LogFile = ownLog{log}, log
	case errors.Is(err, os.ErrNotExist):
		return v.enter(Stopped, ended("")) // it never had a directory, so nothing ran
	default: // its VMM may run all the same
		v.m.o.Log.Error("cannot open a VM's log", "vm", s.Name, "err", err)
	}
	machine, err := driver.Adopt(ctx, spec, s.Process, v.notify)
	switch {
	case err != nil && ctx.Err() != nil: // the daemon ends: the next one finds it as this one did
		return ctx.Err()
	case errors.Is(err, ErrNotFound) && s.Rebooting:
		return nil // its caller starts it again
	case errors.Is(err, ErrNotFound) && (s.State == Starting || s.State == Stopping):
		return v.enter(Stopped, ended(""))
	case errors.Is(err, ErrNotFound):
		gone := Exit{Reason: "the VMM died while no daemon ran"}
		v.reportExit(gone)
		return v.enter(Failed, ended(gone.Reason))
	case err != nil:
		return v.enter(Failed, ended(fmt.Sprintf("cannot take over its VMM: %v", err)))
	}
	state := Running
	switch {
	case s.State == Stopping:
		state = Stopping
	case isPaused(machine):
		state = Paused
	}
	run := CurrentRun{Machine: machine}
	if driver.Capabilities().Lack(FeatureBridge) == "" && s.Address.IsValid() {
		run.Address6 = v.m.o.Network.Address6(s.Address).Addr()
	}
	v.publish(func(s *Snapshot) { s.CurrentRun = run })
	complaint := errors.Join(v.regain(ctx), v.reconnect(ctx))
	// The record has times of the wall clock. From here on the monotonic clock counts.
	now := time.Now()
	monotonic := func(wall time.Time) time.Time { return now.Add(-now.Sub(wall)) }
	if !s.Touched.IsZero() {
		v.SetTouched(monotonic(s.Touched))
	}
	err = v.enter(state, func(d *draft) {
		d.Process, d.StopBy = machine.Process(), s.StopBy
		if complaint != nil {
			d.fail(complaint.Error())
		}
		if d.Started.IsZero() || s.State == Starting {
			d.Started = now
		}
		run.Since = monotonic(d.Started)
		d.run = &run
	})
	if err != nil {
		return err
	}
	v.logf("adopted process %d", machine.Process().PID)
	select {
	case <-machine.Done(): // before v.notify could record it
		v.m.spawn(v.exited)
	default:
		v.followAdopted(machine, state)
	}
	return nil
}
