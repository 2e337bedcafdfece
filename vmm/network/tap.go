package network

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/vmm"
)

// tapName gives the name of a VM's tap.
func (n *Network) tapName(serial uint64) string {
	return n.o.Bridge + "-" + strconv.FormatUint(serial, 36)
}

// Tap implements vmm.Network. The caller closes the file. A removed bridge is made again.
func (n *Network) Tap(ctx context.Context, serial uint64, uuid string) (*os.File, error) {
	name := n.tapName(serial)
	if len(name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("%w: the name %s of the tap is too long; choose a shorter `bridge`", vmm.ErrInvalid, name)
	}
	bridge, err := n.bridge()
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	var rx int64
	if g := n.guests[serial]; g != nil {
		rx = g.Limit.Rx
	}
	n.mu.Unlock()
	f, err := n.tap(bridge, name, uuid, rx)
	if err != nil {
		return nil, fmt.Errorf("cannot make the tap %s: %w", name, err)
	}
	return f, nil
}

// tap makes a tap by which a guest receives rx bytes a second at most, any for 0.
func (n *Network) tap(bridge netlink.Link, name, uuid string, rx int64) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	// Blocking, so that the runtime's poller leaves it alone: only the VMM reads it.
	f := os.NewFile(uintptr(fd), "/dev/net/tun")
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetAlias(link, aliasMark+n.o.Instance+":"+uuid)
	}
	if err == nil {
		err = netlink.LinkSetMTU(link, n.mtu)
	}
	if err == nil {
		err = netlink.LinkSetMaster(link, bridge)
	}
	if err == nil && rx != 0 {
		err = n.shape(link, rx)
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
