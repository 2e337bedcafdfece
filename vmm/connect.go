package vmm

import (
	"context"
	"errors"
	"fmt"
)

// What of a VM's network is in force. All of it happens in the VM's turn, so that what was asked last is what is in force.

// wired reports whether the VM is on the bridge.
func (v *VM) wired(s *Snapshot) bool {
	_, unwired := v.m.drivers[s.Config.VMM].(Unwired)
	return s.Config.Net == NetBridge && !unwired && s.Address.IsValid()
}

func (v *VM) connect(r *Record, all []Publication) error {
	return v.m.o.Network.Connect(Connection{Serial: v.serial, MAC: r.MAC, Address: r.Address, Isolate: r.Config.Isolate, Publish: all})
}

// enforce puts in force what s says of a VM that runs, or is about to.
func (v *VM) enforce(ctx context.Context, s *Snapshot) error {
	if v.wired(s) {
		return v.connect(&s.Record, s.Config.Publications())
	}
	if f, ok := s.Machine.(Forwarder); ok && s.Config.Net == NetUser {
		if err := f.Forward(ctx, s.Config.Publications()); !errors.Is(err, ErrNotRunning) {
			return err // otherwise it has just ended, and with it what it forwarded
		}
	}
	return nil
}

// forward puts in force what needs the machine that has just been started.
func (v *VM) forward(ctx context.Context) error {
	t, err := v.acquire(ctx)
	if err != nil {
		return err
	}
	defer t.release()
	if s := v.Snapshot(); s.Config.Net == NetUser {
		return v.enforce(ctx, s)
	}
	return nil
}

// admit takes the ports of changed settings and, where the VM runs, puts them in force; after an error all is as before.
func (v *VM) admit(old *Config, s *Snapshot) error {
	had, all := old.Publications(), s.Config.Publications()
	added := without(all, had)
	if err := checkPublish(&s.Config, v.m.drivers[s.Config.VMM], s.Owner.UID, all, added); err != nil {
		return err
	}
	if err := v.m.claims.take(v.serial, added, v.m.nameOf); err != nil {
		return err
	}
	err := func() error {
		alive := s.State.Alive() || s.State == Starting
		if old.Publish == s.Config.Publish && old.Isolate == s.Config.Isolate {
			return nil
		}
		if !alive || !v.wired(s) {
			// Sockets that only another port of the guest is behind now are this VM's own.
			if err := probe(notServed(added, had, alive)); err != nil {
				return err
			}
		}
		if !alive {
			return nil
		}
		return v.enforce(context.Background(), s) // bounded by the driver, and not to be left half done
	}()
	if err != nil {
		v.m.claims.set(v.serial, had)
	}
	return err
}

// notServed gives those of added whose socket the VM does not hold already for one of had.
func notServed(added, had []Publication, alive bool) []Publication {
	var rest []Publication
	for _, p := range added {
		held := false
		for _, q := range had {
			held = held || alive && p.Overlaps(q)
		}
		if !held {
			rest = append(rest, p)
		}
	}
	return rest
}

// admitted ends what admit began: err says why the settings could not be recorded, and then those of before are put in force again.
func (v *VM) admitted(before *Snapshot, err error) {
	if err == nil {
		v.m.claims.set(v.serial, v.Snapshot().Config.Publications())
		return
	}
	v.m.claims.set(v.serial, before.Config.Publications())
	if before.State.Alive() || before.State == Starting {
		if err := v.enforce(context.Background(), before); err != nil {
			v.m.o.Log.Error("cannot put the recorded ports in force again", "vm", before.Name, "err", err)
		}
	}
}

// reconnect puts in force what is recorded of a VM that was adopted. Whoever took a published port while no daemon ran keeps it: that
// port is told in the error, all others are in force.
func (v *VM) reconnect(ctx context.Context) error {
	s := *v.Snapshot()
	all := s.Config.Publications()
	err := v.enforce(ctx, &s)
	if err == nil {
		return nil
	}
	errs := []error{err}
	if errors.Is(err, ErrAddressInUse) || errors.Is(err, ErrInvalid) || errors.Is(err, ErrAccess) {
		errs = nil
		var kept []Publication
		s.Config.Publish = ""
		if err := v.enforce(ctx, &s); err != nil {
			errs = append(errs, err)
		}
		for _, p := range all {
			s.Config.Publish = formatPublications(append(kept, p))
			if err := v.enforce(ctx, &s); err != nil {
				errs = append(errs, err)
				continue
			}
			kept = append(kept, p)
		}
	}
	err = fmt.Errorf("not all of its network is in force: %w", errors.Join(errs...))
	v.m.o.Log.Error("a VM was adopted in part", "vm", s.Name, "err", err)
	v.logf("%v", err)
	return err
}

// nameOf gives the name of a VM by its serial.
func (m *Manager) nameOf(serial uint64) string {
	if v := m.BySerial(serial); v != nil {
		return v.Snapshot().Name
	}
	return "another VM"
}
