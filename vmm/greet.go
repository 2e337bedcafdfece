package vmm

import (
	"context"
	"net/netip"
	"time"

	"banger/vmm/guest"
)

const (
	configureWait = 3 * time.Second        // for the agent to set the guest's address
	greetAgain    = 100 * time.Millisecond // after the first greeting that failed, then twice as long
	greetAtLast   = 5 * time.Second
)

// greet waits, in the background, until the agent of a new machine answers,
// and tells the guest who it is.
func (v *VM) greet(machine Machine) {
	g, ok := machine.(Guester)
	if !ok {
		return
	}
	v.m.spawn(func() {
		ctx, cancel := context.WithCancel(v.m.ctx)
		defer cancel()
		stop := make(chan struct{})
		defer close(stop)
		go func() { // ends with this function: stop is closed
			select {
			case <-machine.Done():
			case <-v.m.closing:
			case <-stop:
			}
			cancel()
		}()
		for wait := greetAgain; ; wait = min(2*wait, greetAtLast) {
			err := v.introduce(ctx, g.Guest())
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return
			}
			v.logf("the agent was not told its settings, trying again: %v", err)
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
	if err != nil { // it may do without: a disk that is full must not keep a guest from its address
		v.m.o.Log.Error("cannot keep an ssh host key for a VM", "vm", s.Name, "err", err)
	}
	c.HostKey = key
	c.Time = time.Now()
	ctx, cancel := context.WithTimeout(ctx, configureWait)
	defer cancel()
	return g.Configure(ctx, c)
}

// guestConfig is who the guest is, also of one that is only starting; the time and the keys are left to the moment of telling.
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
