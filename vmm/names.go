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

// DNS is the name by which the host's programs find the guest now: NAME.vm, empty while they would not.
func (s *Snapshot) DNS() string {
	if !s.Named || !s.GuestAddress().IsValid() {
		return ""
	}
	return s.Name + "." + Zone
}

// addresses are those at which the guest is reached now.
func (s *Snapshot) addresses() []netip.Addr {
	var all []netip.Addr
	for _, a := range []netip.Addr{s.GuestAddress(), s.GuestAddress6()} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}

// SetNamed says whether the host finds guests by their names from now on, which every snapshot then tells. It does not block.
func (m *Manager) SetNamed(on bool) {
	if m.named.Swap(on) == on {
		return
	}
	for _, v := range m.VMs() { // one that is not in the list yet takes it from named at its next change, before it has an address
		v.publish(func(*Snapshot) {})
	}
}

// Addresses gives those of the running VM of that name, none if there is no such VM; it does not block.
func (m *Manager) Addresses(name string) []netip.Addr {
	v := m.VM(name)
	if v == nil {
		return nil
	}
	return v.Snapshot().addresses()
}

// NameOf gives the running VM that has the address, empty if none has; it does not block, nor take longer the more VMs there are.
func (m *Manager) NameOf(a netip.Addr) string {
	v, ok := m.byAddress.Load(a)
	if !ok {
		return ""
	}
	s := v.(*VM).Snapshot()
	if !slices.Contains(s.addresses(), a) { // just now it stopped
		return ""
	}
	return s.Name
}

// indexAddresses keeps byAddress when a VM's snapshot changes; v.mu is held, or nobody has v yet.
func (v *VM) indexAddresses(old, now *Snapshot) {
	for _, a := range [][2]netip.Addr{{old.GuestAddress(), now.GuestAddress()}, {old.GuestAddress6(), now.GuestAddress6()}} {
		if a[0] == a[1] {
			continue
		}
		v.m.byAddress.CompareAndDelete(a[0], v)
		if a[1].IsValid() {
			v.m.byAddress.Store(a[1], v)
		}
	}
}

// Hosts gives a line of hosts(5) for each address of the running VMs, sorted by name; with short also each name without its domain. It does not block.
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
