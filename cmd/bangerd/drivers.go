package main

import (
	"errors"
	"log/slog"

	"banger/vmm"
	"banger/vmm/fake"
	"banger/vmm/network"
	"banger/vmm/qemu"
)

// openNetwork returns the network and the default `net` of new VMs. A host that cannot have the
// bridge has user networking. An invalid configuration is an error.
func openNetwork(
	log *slog.Logger, c config, instance string, root bool,
) (vmm.Network, vmm.NetMode, error) {
	if !root {
		return network.Unprivileged(), vmm.NetUser, nil
	}
	prefix6 := c.Subnet6.prefix
	if !prefix6.IsValid() && !c.Subnet6.off {
		prefix6 = network.LocalPrefix6(instance)
	}
	n, err := network.New(network.Options{Bridge: c.Bridge, Prefix: c.Subnet, Prefix6: prefix6,
		NAT: bool(c.NAT), LAN: bool(c.LAN), GuestToHost: bool(c.GuestToHost),
		Uplink: string(c.Uplink), MTU: int(c.MTU), Instance: instance, Log: log})
	switch {
	case err == nil:
		return n, vmm.NetBridge, nil
	case errors.Is(err, vmm.ErrInvalid):
		return nil, "", err
	}
	log.Warn("no bridge, so new VMs get net = user", "err", err)
	return network.Without(err), vmm.NetUser, nil
}

// drivers returns the drivers, the real one first. Without QEMU the daemon serves too, and each start
// and `vmms` show the reason.
func drivers(log *slog.Logger, c config, groups vmm.Groups, withFake bool) []vmm.Driver {
	var all []vmm.Driver
	d, err := qemu.New(qemu.Options{Binary: string(c.QEMU), Accel: c.Accel, Machine: string(c.Machine),
		UserWorld: bool(c.UserWorld), Groups: groups, Log: log})
	if err == nil {
		all = append(all, d)
	} else {
		log.Warn("no QEMU", "err", err)
		all = append(all, vmm.BaseDriver{Can: vmm.Capabilities{Name: "qemu", Unusable: err.Error()}})
	}
	if withFake {
		all = append(all, fake.New())
	}
	return all
}
