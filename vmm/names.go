package vmm

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"banger/vmm/guest"
)

// Zone is the domain of VMs' names.
const Zone = guest.Zone

// DNS returns the name by which the host's programs find the guest: NAME.vm, or "" if they do not.
func (s *Snapshot) DNS() string {
	if !s.Named || !s.GuestAddress().IsValid() {
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
	if v == nil {
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
	if !slices.Contains(s.addresses(), a) { // it has just stopped
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
