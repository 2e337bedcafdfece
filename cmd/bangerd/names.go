package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"banger/vmm"
	"banger/vmm/dns"
)

// listenNames opens the port of DNS on the bridge. It returns nil, and guests have no names, if
// there is no bridge or another program has the port.
func listenNames(log *slog.Logger, c config, net vmm.Network) *dns.Server {
	if !bool(c.DNS) || !net.Prefix().IsValid() {
		return nil
	}
	gateways := []netip.Prefix{netip.PrefixFrom(net.Gateway(), net.Prefix().Bits())}
	if six := net.Gateway6(); six.IsValid() {
		gateways = append(gateways, netip.PrefixFrom(six, net.Address6(net.Gateway()).Bits()))
	}
	s, err := dns.Listen(dns.Options{Gateways: gateways, Log: log})
	if err != nil {
		log.Warn("no names are served; end what listens there, or set `dns` to off", "err", err)
		return nil
	}
	return s
}

// serveNames answers queries for the VMs' names, if s is not nil, and makes the host resolve them.
// It ends when the returned function is called.
func serveNames(
	log *slog.Logger, c config, s *dns.Server, m *vmm.Manager,
) func(context.Context) error {
	stop := func(context.Context) error { return nil }
	if s != nil {
		s.Serve(m)
		stop = func(context.Context) error { return s.Close() }
	}
	o := dns.HostOptions{Server: s, Bridge: c.Bridge, Log: log,
		Lines: func() []byte { return m.Hosts(false) }, Resolves: m.SetNamed}
	if c.HostsFile != notServed {
		o.HostsFile = c.HostsFile
	}
	if !c.DNS {
		o.Resolves = func(bool) {}
	}
	if s == nil && o.HostsFile == "" {
		return stop
	}
	host := dns.Follow(o)
	m.OnChange(func(e vmm.Event) {
		if e.What == vmm.EventState {
			host.Changed()
		}
	}, host.Changed)
	return func(ctx context.Context) error { return errors.Join(host.Close(), stop(ctx)) }
}
