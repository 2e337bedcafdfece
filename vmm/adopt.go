package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// adoptionsAtOnce bounds what Open asks side by side.
const adoptionsAtOnce = 32

// recover makes VMs of the records: adopts, or says what became of them.
func (m *Manager) recover(ctx context.Context, records []Record) error {
	living := make(map[string]bool)
	ids := make(map[string]bool)
	for _, r := range records {
		ids[r.ID] = true
		living[r.ID] = r.State.Alive() || r.State == Starting
	}
	for _, d := range m.o.Drivers {
		if err := d.Sweep(ctx, m.o.StateDir, func(id string) bool { return living[id] }); err != nil {
			return fmt.Errorf("cannot end leftover machines: %w", err)
		}
	}
	entries, err := os.ReadDir(m.vmsDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !ids[e.Name()] {
			m.o.Log.Info("removing the directory of a VM that is gone", "id", e.Name())
			if err := os.RemoveAll(filepath.Join(m.vmsDir, e.Name())); err != nil {
				return err
			}
		}
	}
	for _, r := range records {
		m.claims.set(r.Serial, r.Config.Publications())
		m.insert(m.newVM(r))
	}
	saved, err := m.o.Store.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, d := range saved {
		if v := m.BySerial(d.Serial); v != nil {
			v.publish(func(s *Snapshot) { s.Saved = append(s.Saved, d) })
		}
	}
	if err := m.adopt(ctx); err != nil {
		return err
	}
	return m.o.Network.Settle()
}

// adopt recovers the VMs that were not stopped, side by side: a VMM that does not answer takes its deadline.
func (m *Manager) adopt(ctx context.Context) error {
	slots := make(chan struct{}, adoptionsAtOnce)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error // guarded by mu
	for _, v := range m.VMs() {
		if s := v.Snapshot().State; s == Stopped || s == Failed {
			continue
		}
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-slots }()
			if err := v.recover(ctx); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("cannot recover %s: %w", v.Snapshot().Name, err))
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
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
		gone := Exit{Reason: "the VMM died while no daemon ran"}
		v.tellExit(gone)
		return v.enter(Failed, ended(gone.Reason))
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
		return v.finish(machine, "the daemon that was stopping it has gone")
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
