package qemu

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"banger/vmm"
	"banger/vmm/guest"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

const (
	vhostVsock = "/dev/vhost-vsock"
	// setGuestCID is VHOST_VSOCK_SET_GUEST_CID, _IOW(0xaf, 0x60, __u64) of linux/vhost.h.
	setGuestCID = 0x4008af60
	// firstCID leaves the lowest addresses to people, who choose them by hand. 0 to 2 are reserved
	// (vsock(7)), as is the highest.
	firstCID = 1 << 16
	// leaseTries bounds the search for a free address among 2^32.
	leaseTries = 16
)

// leaseVsock opens /dev/vhost-vsock and sets an address that no other guest of this host has,
// guests of other programs included. QEMU inherits the file and with it the address. Without vsock
// or a free address there is no file, and virtio-serial serves.
func (d *Driver) leaseVsock(spec *vmm.Spec) (*os.File, uint32) {
	f, err := os.OpenFile(vhostVsock, os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		return nil, 0
	case err == nil:
		var cid uint32
		if cid, err = leaseCID(func(cid uint32) error { return claimCID(f, cid) }); err == nil {
			return f, cid
		}
		f.Close()
	}
	d.log.Warn("no vsock: virtio-serial leads to the agent", "vm", spec.Name, "error", err)
	return nil, 0
}

// leaseCID returns a random address that claim accepts.
func leaseCID(claim func(cid uint32) error) (uint32, error) {
	var err error
	for range leaseTries {
		var b [4]byte
		if _, err = rand.Read(b[:]); err != nil {
			return 0, err
		}
		cid := binary.NativeEndian.Uint32(b[:])
		if cid < firstCID || cid == unix.VMADDR_CID_ANY {
			continue
		}
		if err = claim(cid); err == nil {
			return cid, nil
		}
		if err != unix.EADDRINUSE {
			break
		}
	}
	return 0, fmt.Errorf("cannot get a vsock address: %w", err)
}

// claimCID sets the address of an open /dev/vhost-vsock: EADDRINUSE if another guest has it. QEMU
// sets the same address again.
func claimCID(f *os.File, cid uint32) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	arg := uint64(cid)
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, setGuestCID, uintptr(unsafe.Pointer(&arg)))
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}

// guestCID returns the address on the command line of a living QEMU, 0 if it has none.
func guestCID(args []string) uint32 {
	for i, a := range args {
		if i == 0 || args[i-1] != "-device" || !strings.HasPrefix(a, "vhost-vsock-") {
			continue
		}
		_, a, _ = strings.Cut(a, ",guest-cid=")
		a, _, _ = strings.Cut(a, ",")
		if cid, err := strconv.ParseUint(a, 10, 32); err == nil && cid > unix.VMADDR_CID_HOST {
			return uint32(cid)
		}
	}
	return 0
}

// toGuest returns the way to the guest at cid, nil for 0.
func (d *Driver) toGuest(spec *vmm.Spec, cid uint32) *guest.Vsock {
	if cid == 0 {
		return nil
	}
	name := spec.Name
	return &guest.Vsock{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return dialVsock(ctx, cid, guest.VsockPort)
		},
		Note: func(err error) {
			if err == nil {
				d.log.Info("vsock leads to the agent", "vm", name, "cid", cid)
				return
			}
			d.log.Warn("vsock does not serve: virtio-serial leads to the agent",
				"vm", name, "cid", cid, "error", err)
		},
	}
}

// dialVsock dials until ctx ends. An attempt may go on in the background, for the kernel's limit of
// 2 s.
func dialVsock(ctx context.Context, cid, port uint32) (net.Conn, error) {
	type dialled struct {
		conn net.Conn
		err  error
	}
	ch := make(chan dialled)
	go func() {
		var r dialled
		if conn, err := vsock.Dial(cid, port, nil); err != nil {
			r.err = err
		} else {
			r.conn = conn
		}
		select {
		case ch <- r:
		case <-ctx.Done():
			if r.conn != nil {
				r.conn.Close()
			}
		}
	}()
	select {
	case r := <-ch:
		return r.conn, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
