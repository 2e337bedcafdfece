package vmm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"banger/vmm/guest"
)

// All of a VM's network is enforced in the VM's turn, so that the last change is in force.

// wired reports whether the VM is on the bridge.
func (v *VM) wired(s *Snapshot) bool {
	return s.Config.Net == NetBridge && s.Address.IsValid() &&
		v.m.driver(s.Config.VMM).Capabilities().Lack(FeatureBridge) == ""
}

func (v *VM) connect(r *Record, all []Publication) error {
	return v.m.o.Network.Connect(Connection{
		Serial: v.serial, MAC: r.MAC, Address: r.Address, Isolate: r.Config.Isolate,
		Limit: r.Config.NetMax, Publish: all,
	})
}

// enforce puts the settings of s in force for a VM that runs, or is about to.
func (v *VM) enforce(ctx context.Context, s *Snapshot) error {
	if v.wired(s) {
		return v.connect(&s.Record, s.Config.Publications())
	}
	if s.Machine != nil && s.Config.Net == NetUser {
		if err := s.Machine.Forward(ctx, s.Config.Publications()); !errors.Is(err, ErrNotRunning) {
			return err // a machine that has just ended forwards nothing
		}
	}
	return nil
}

// forward enforces the settings that need a started machine, and limits that were written while it
// was being started.
func (v *VM) forward(ctx context.Context) error {
	t, err := v.acquire(ctx)
	if err != nil {
		return err
	}
	defer t.release()
	s := v.Snapshot()
	if s.Machine != nil {
		err = v.limit(ctx, s)
	}
	if err == nil && s.Config.Net == NetUser {
		err = v.enforce(ctx, s)
	}
	return err
}

// admit claims the ports of changed settings and enforces them if the VM runs. After an error
// nothing is changed.
func (v *VM) admit(old *Config, s *Snapshot) error {
	had, all := old.Publications(), s.Config.Publications()
	added := without(all, had)
	if err := checkPublish(&s.Config, v.m.driver(s.Config.VMM), s.Owner.UID, all, added); err != nil {
		return err
	}
	if err := v.m.claims.take(v.serial, added, v.m.nameOf); err != nil {
		return err
	}
	err := func() error {
		alive := s.State.Alive() || s.State == Starting
		if old.Publish == s.Config.Publish && old.Isolate == s.Config.Isolate &&
			old.NetMax == s.Config.NetMax {
			return nil
		}
		if !alive || !v.wired(s) {
			// A socket that only leads to another port of the guest now is this VM's own.
			if err := probe(notServed(added, had, alive)); err != nil {
				return err
			}
		}
		if !alive {
			return nil
		}
		return v.enforce(context.Background(), s) // the driver bounds it; half of it would be wrong
	}()
	if err != nil {
		v.m.claims.set(v.serial, had)
	}
	return err
}

// notServed returns those of added whose socket a VM that runs does not have for one of had.
func notServed(added, had []Publication, alive bool) []Publication {
	return slices.DeleteFunc(slices.Clone(added), func(p Publication) bool {
		return alive && slices.ContainsFunc(had, p.Overlaps)
	})
}

// admitted ends what admit began. If err says that the settings could not be recorded, those of
// before are enforced again.
func (v *VM) admitted(before *Snapshot, err error) {
	v.m.claims.set(v.serial, v.Snapshot().Config.Publications())
	if err == nil {
		return
	}
	if before.State.Alive() || before.State == Starting {
		if err := v.enforce(context.Background(), before); err != nil {
			v.m.o.Log.Error("cannot restore the ports of a VM", "vm", before.Name, "err", err)
		}
	}
}

// reconnect enforces the settings of an adopted VM. A published port that another process took
// while no daemon ran stays that process's. The error names it, and all other ports are in force.
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
	v.m.o.Log.Error("a VM was adopted without all of its network", "vm", s.Name, "err", err)
	v.logf("%v", err)
	return err
}

// nameOf returns the name of a VM by its serial.
func (m *Manager) nameOf(serial uint64) string {
	if v := m.BySerial(serial); v != nil {
		return v.Snapshot().Name
	}
	return "another VM"
}

// Zone is the domain of VMs' names.
const Zone = guest.Zone

// DNS returns the name by which the host's programs find the guest: NAME.vm, or "" if they do not.
func (s *Snapshot) DNS() string {
	if !s.Named || !s.GuestAddress().IsValid() || !s.Resolves() {
		return ""
	}
	return s.Name + "." + Zone
}

// addresses returns the addresses at which the host reaches the guest.
func (s *Snapshot) addresses() []netip.Addr {
	var all []netip.Addr
	for _, a := range []netip.Addr{s.GuestAddress(), s.GuestAddress6()} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}

// SetNamed sets in every snapshot whether the host finds guests by their names. It does not block.
func (m *Manager) SetNamed(on bool) {
	if m.named.Swap(on) == on {
		return
	}
	for _, v := range m.VMs() { // a new VM gets it at its next change, before it has an address
		v.publish(func(*Snapshot) {})
	}
}

// Addresses returns the addresses of the running VM of that name, if any. It does not block.
func (m *Manager) Addresses(name string) []netip.Addr {
	v := m.VM(name)
	if v == nil || special[name] != "" {
		return nil
	}
	return v.Snapshot().addresses()
}

// NameOf returns the name of the running VM that has the address, "" if none has. It does not
// block, and its time does not grow with the number of VMs.
func (m *Manager) NameOf(a netip.Addr) string {
	v, ok := m.byAddress.Load(a)
	if !ok {
		return ""
	}
	s := v.(*VM).Snapshot()
	if !slices.Contains(s.addresses(), a) || !s.Resolves() { // it has just stopped
		return ""
	}
	return s.Name
}

// indexAddresses updates byAddress for a changed snapshot. The caller holds v.mu, or is alone with
// v.
func (v *VM) indexAddresses(old, now *Snapshot) {
	v.indexAddress(old.GuestAddress(), now.GuestAddress())
	v.indexAddress(old.GuestAddress6(), now.GuestAddress6())
}

func (v *VM) indexAddress(old, now netip.Addr) {
	if old == now {
		return
	}
	v.m.byAddress.CompareAndDelete(old, v)
	if now.IsValid() {
		v.m.byAddress.Store(now, v)
	}
}

// Hosts returns a line of hosts(5) for each address of the running VMs, sorted by name. With short,
// lines have the names without the domain, too. It does not block.
func (m *Manager) Hosts(short bool) []byte {
	var b strings.Builder
	for _, v := range m.VMs() {
		s := v.Snapshot()
		if !s.Resolves() {
			continue
		}
		for _, a := range s.addresses() {
			fmt.Fprintf(&b, "%s %s.%s", a, s.Name, Zone)
			if short {
				b.WriteString(" " + s.Name)
			}
			b.WriteByte('\n')
		}
	}
	return []byte(b.String())
}
