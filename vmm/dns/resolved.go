package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	resolvedName = "org.freedesktop.resolve1"
	resolvedPath = "/org/freedesktop/resolve1"
	busTime      = 5 * time.Second // for all that is said over the bus at one time
)

// errNoResolved: systemd-resolved does not run here.
var errNoResolved = errors.New("systemd-resolved does not run")

// resolved registers the bridge's addresses with systemd-resolved as the servers of the bridge's
// names, over the system bus (org.freedesktop.resolve1(5)).
// It never starts it. One goroutine uses it.
type resolved struct {
	owner string // the process that was told last, as the bus names it; empty for none
	link  int    // about which interface
}

// busAddress and busDomain are what SetLinkDNS and SetLinkDomains take.
type (
	busAddress struct {
		Family  int32
		Address []byte
	}
	busDomain struct {
		Name      string
		RouteOnly bool // where to ask for it, and not a domain to search names in
	}
)

// register tells it, unless the one that runs knows already: it logs every time that it is told.
func (r *resolved) register(
	ctx context.Context, link int, servers []netip.Addr, zones []string,
) error {
	ctx, cancel := context.WithTimeout(ctx, busTime)
	defer cancel()
	was := *r
	*r = resolved{}
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("%w: %v", errNoResolved, err)
	}
	defer conn.Close()
	var owner string
	get := "org.freedesktop.DBus.GetNameOwner"
	err = conn.BusObject().CallWithContext(ctx, get, 0, resolvedName).Store(&owner)
	var e dbus.Error
	if errors.As(err, &e) && e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner" {
		return errNoResolved
	}
	if err != nil {
		return err
	}
	if was == (resolved{owner, link}) {
		*r = was
		return nil
	}
	var addresses []busAddress
	for _, s := range servers {
		family := int32(unix.AF_INET)
		if s.Is6() {
			family = unix.AF_INET6
		}
		addresses = append(addresses, busAddress{family, s.AsSlice()})
	}
	var domains []busDomain
	for _, z := range zones {
		domains = append(domains, busDomain{z, true})
	}
	for _, c := range []struct {
		method string
		value  any
	}{{"SetLinkDNS", addresses}, {"SetLinkDomains", domains}, {"SetLinkDefaultRoute", false}} {
		if err := callResolved(ctx, conn, c.method, int32(link), c.value); err != nil {
			return err
		}
	}
	*r = resolved{owner, link}
	return nil
}

// told reports whether the one that ran when it was looked for last knows.
func (r *resolved) told() bool { return r.owner != "" }

// unregister takes back what was told.
func (r *resolved) unregister(ctx context.Context) error {
	if !r.told() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, busTime)
	defer cancel()
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return err
	}
	defer conn.Close()
	link := r.link
	*r = resolved{}
	return callResolved(ctx, conn, "RevertLink", int32(link))
}

func callResolved(ctx context.Context, conn *dbus.Conn, method string, args ...any) error {
	manager := conn.Object(resolvedName, resolvedPath)
	name := resolvedName + ".Manager." + method
	c := manager.CallWithContext(ctx, name, dbus.FlagNoAutoStart, args...)
	if c.Err != nil {
		return fmt.Errorf("%s: %w", method, c.Err)
	}
	return nil
}
