package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"banger/vmm"
)

// unprivileged has no bridge, and says why.
type unprivileged struct{ why error }

// Unprivileged is the network of a daemon without privileges: user networking by the VMM, or none.
func Unprivileged() vmm.Network {
	return Without(errors.New("it needs a daemon that runs as root"))
}

// Without returns the network of a daemon without a bridge: the VMM's user networking, or none.
func Without(why error) vmm.Network { return unprivileged{why} }

func (u unprivileged) Check(mode vmm.NetMode) error {
	if mode == vmm.NetBridge {
		return fmt.Errorf("%w: no net = bridge here, use `user` or `none`: %v", vmm.ErrNotPermitted, u.why)
	}
	return nil
}
func (unprivileged) Prefix() netip.Prefix             { return netip.Prefix{} }
func (unprivileged) Gateway() netip.Addr              { return netip.Addr{} }
func (unprivileged) Address6(netip.Addr) netip.Prefix { return netip.Prefix{} }
func (unprivileged) Gateway6() netip.Addr             { return netip.Addr{} }
func (unprivileged) MTU() int                         { return 0 }
func (u unprivileged) Connect(c vmm.Connection) error { return u.Check(vmm.NetBridge) }
func (unprivileged) Disconnect(uint64)                {}
func (unprivileged) Settle() error                    { return nil }
func (unprivileged) Release() error                   { return nil }

func (unprivileged) LinkStats() (map[uint64]vmm.LinkStats, error) { return nil, nil }

func (u unprivileged) Tap(context.Context, uint64, string) (*os.File, error) {
	return nil, u.Check(vmm.NetBridge)
}
