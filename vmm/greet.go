package vmm

import (
	"context"
	"net/netip"
	"time"

	"banger/vmm/guest"
)

const (
	configureWait = 3 * time.Second        // bounds the agent's work on the guest's settings
	greetAgain    = 100 * time.Millisecond // after the first failed greeting, then twice as long
	greetAtLast   = 5 * time.Second        // and at most this
)

// greet waits, in the background, until the agent of a new machine answers, and sends the guest its
// settings.
func (v *VM) greet(machine Machine) {
	agent := machine.Guest()
	if agent == nil {
		return
	}
	v.m.spawn(func() {
		ctx, cancel := endsWith(v.m.ctx, machine.Done())
		defer cancel()
		ctx, cancel = endsWith(ctx, v.m.closing)
		defer cancel()
		for wait := greetAgain; ; wait = min(2*wait, greetAtLast) {
			err := v.introduce(ctx, agent)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return
			}
			v.logf("the agent has not accepted its settings, trying again: %v", err)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
		v.publish(func(s *Snapshot) {
			if s.Machine == machine {
				s.Ready, s.ReadyIn = true, time.Since(s.Since)
			}
		})
	})
}

// introduce waits for the agent and sets host name, address and clock.
func (v *VM) introduce(ctx context.Context, g guest.Agent) error {
	if _, err := g.Ping(ctx); err != nil {
		return err
	}
	c := v.guestConfig()
	s := v.Snapshot()
	c.AuthorizedKeys = keysFor(&s.Config)
	key, err := v.hostKey()
	if err != nil { // a full disk must not keep the guest from its address
		v.m.o.Log.Error("cannot keep an ssh host key for a VM", "vm", s.Name, "err", err)
	}
	c.HostKey = key
	c.Time = time.Now()
	ctx, cancel := context.WithTimeout(ctx, configureWait)
	defer cancel()
	return g.Configure(ctx, c)
}

// guestConfig returns the guest's settings, from its start on. Only a greeting adds time and keys.
func (v *VM) guestConfig() guest.Config {
	s := v.Snapshot()
	c := guest.Config{Hostname: s.Name, MAC: s.MAC}
	if s.Config.Net == NetBridge && s.Address.IsValid() {
		c.Address = netip.PrefixFrom(s.Address, v.m.o.Network.Prefix().Bits())
		c.Gateway = v.m.o.Network.Gateway()
		c.Address6, c.Gateway6 = v.m.o.Network.Address6(s.Address), v.m.o.Network.Gateway6()
		c.MTU = v.m.o.Network.MTU()
		c.DNS = v.m.o.DNS
	} else if s.Config.Net == NetUser {
		c.Address, c.Gateway, c.DNS = UserAddress, UserGateway, []netip.Addr{UserDNS}
	}
	return c
}
