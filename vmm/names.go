package vmm

import (
	"fmt"
	"net/netip"
	"strings"
)

// Zone is the domain of VMs' names.
const Zone = "vm"

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

// NameOf gives the running VM that has the address, empty if none has; it looks at every VM and does not block.
func (m *Manager) NameOf(a netip.Addr) string {
	for _, v := range m.VMs() {
		s := v.Snapshot()
		if s.Address == a && s.GuestAddress() == a || s.Address6 == a && s.GuestAddress6() == a {
			return s.Name
		}
	}
	return ""
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
