package vmm

import "fmt"

// noRoom is the overdraft of a start that needs more of the host's memory than is left.
func noRoom(n, used, most int64) error {
	return &overdraft{fmt.Errorf("running VMs may use %d of the %d bytes of memory that the host "+
		"has for VMs, and this may use %d more: stop one, give this less memory, "+
		"or raise overcommit_memory in the daemon's configuration: %w", used, most, n, ErrNoMemory)}
}

// checkHost refuses settings with which the VM could never start on this host. It checks those that
// change: the host may have been another one.
func (m *Manager) checkHost(old, c *Config, image footprint) error {
	can := m.driver(c.VMM).Capabilities()
	if (c.CPUs != old.CPUs || c.VMM != old.VMM) && can.MaxCPUs > 0 && c.CPUs > can.MaxCPUs {
		return fmt.Errorf("cpus must be 1 to %d with vmm %s, not %d: %w",
			can.MaxCPUs, c.VMM, c.CPUs, ErrInvalid)
	}
	if c.Memory == old.Memory && c.VMM == old.VMM {
		return nil
	}
	if n := m.hostMemory(c, image); n > m.ledger.most {
		guest := c.GuestMemory(image.memory)
		return fmt.Errorf("memory of %d bytes, and %d for the VMM, are more than the %d that "+
			"the host has for VMs: write less, "+
			"or raise overcommit_memory in the daemon's configuration: %w",
			guest, n-guest, m.ledger.most, ErrNoMemory)
	}
	return nil
}
