package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"banger/vmm/guest"

	"golang.org/x/sys/unix"
)

// version is set by the build (-X main.version=...).
var version = "dev"

// agent answers the host's requests.
type agent struct {
	powerOff func()
	freezer  freezer
	work     *workDisk // nil in tests
	children starter
	program  *guest.Program // of the image; nil for the built-in one and one with an init
	end      *ending        // of program, or of an init that could not begin; else nil

	mounts atomic.Pointer[mounts] // of the last Stats

	configuring sync.Mutex // one Configure at a time; guards resolvers
	resolvers   resolvers
	greeted     chan struct{} // closed after the first Configure; nil where end is
	greet       sync.Once
}

func (g *agent) Ping(context.Context) (guest.Info, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return guest.Info{}, err
	}
	return guest.Info{
		Version:  version,
		Kernel:   unix.ByteSliceToString(u.Release[:]),
		Hostname: unix.ByteSliceToString(u.Nodename[:]),
		Uptime:   uptime(),
		Ends:     g.end != nil,
	}, nil
}

func (g *agent) Listeners(context.Context) ([]guest.Listener, error) { return listeners(), nil }

func (g *agent) Stats(context.Context) (guest.Stats, error) {
	s := guest.Stats{Load1: load(), Uptime: uptime(), Procs: len(pids())}
	s.MemTotal, s.MemAvailable = parseMeminfo(readFile("/proc/meminfo"))
	for _, point := range g.mountPoints() {
		var st unix.Statfs_t
		if unix.Statfs(point, &st) == nil {
			s.DiskTotal += int64(st.Blocks) * st.Bsize
			s.DiskUsed += int64(st.Blocks-st.Bfree) * st.Bsize
		}
	}
	return s, nil
}

// mounts are the mount points of a text of /proc/self/mountinfo. It is immutable.
type mounts struct {
	text   []byte
	points []string
}

// mountPoints returns one mount point for each block device. It parses a text once.
func (g *agent) mountPoints() []string {
	text := readFile("/proc/self/mountinfo")
	m := g.mounts.Load()
	if m == nil || !bytes.Equal(m.text, text) {
		m = &mounts{text, parseMounts(text)}
		g.mounts.Store(m)
	}
	return m.points
}

// uptime returns what /proc/uptime shows, seconds, without the file.
func uptime() float64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return math.Floor(float64(ts.Nano())/1e7) / 100
}

// load returns the load of the last minute that /proc/loadavg shows, without the file.
func load() float64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	// As fs/proc/loadavg.c rounds: the kernel counts in 1/2048, which sysinfo(2) shifts by 5.
	return float64((info.Loads[0]>>5+10)*100>>11) / 100
}

// PowerOff begins the shutdown once the answer has had time to leave.
func (g *agent) PowerOff(context.Context) error {
	time.AfterFunc(20*time.Millisecond, g.powerOff)
	return nil
}

// maxClockError is how far the clock may be off before it is set.
const maxClockError = 500 * time.Millisecond

func (g *agent) Configure(ctx context.Context, c guest.Config) error {
	off := time.Until(c.Time) // before what follows takes time
	g.work.wait(ctx)          // who waits for `healthy` finds /work
	g.configuring.Lock()
	defer g.configuring.Unlock()
	// The start is over. The runtime would return its memory bit by bit and wake an idle guest for
	// minutes.
	time.AfterFunc(time.Second, debug.FreeOSMemory)
	if g.greeted != nil {
		defer g.greet.Do(func() { close(g.greeted) })
	}
	if c.Hostname != "" {
		if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
			return fmt.Errorf("cannot set the host name: %w", err)
		}
		setNames("/", &c)
	}
	if !c.Time.IsZero() && off.Abs() > maxClockError {
		if _, err := unix.Adjtimex(adjustment(guest.Adjustment{By: off})); err != nil {
			return fmt.Errorf("cannot set the clock: %w", err)
		}
	}
	if len(c.DNS) > 0 {
		if err := g.resolvers.set(c.DNS, c.Gateway); err != nil {
			log.Printf("cannot write resolv.conf: %v", err) // the guest runs all the same
		}
	}
	if err := setKeys("/", &c); err != nil {
		return err
	}
	if !c.Address.IsValid() {
		return nil
	}
	name, err := interfaceFor(c.MAC)
	if err != nil {
		return err
	}
	return connect(name, &c)
}

// interfaceFor returns the interface with that MAC, or without one the only one but the loopback.
func interfaceFor(mac string) (string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	want, err := net.ParseMAC(mac)
	if mac != "" && err != nil {
		return "", err
	}
	var found []string
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 && (mac == "" || bytes.Equal(i.HardwareAddr, want)) {
			found = append(found, i.Name)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("cannot choose an interface: %d have the MAC %q", len(found), mac)
	}
	return found[0], nil
}

// onInterface calls f with a socket and the structure for an ioctl on it (netdevice(7)).
func onInterface(name string, f func(fd int, r *unix.Ifreq) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	return f(fd, r)
}

// setAddress sets an IPv4 address and the default route.
func setAddress(name string, p netip.Prefix, gateway netip.Addr) error {
	if !p.Addr().Is4() {
		return fmt.Errorf("cannot set %s: only IPv4 addresses are understood", p)
	}
	return onInterface(name, func(fd int, r *unix.Ifreq) error {
		addr := p.Addr().As4()
		mask := net.CIDRMask(p.Bits(), 32)
		for _, step := range []struct {
			request uint
			value   []byte
		}{{unix.SIOCSIFADDR, addr[:]}, {unix.SIOCSIFNETMASK, mask}} {
			if err := r.SetInet4Addr(step.value); err != nil {
				return err
			}
			if err := unix.IoctlIfreq(fd, step.request, r); err != nil {
				return fmt.Errorf("cannot give %s the address %s: %w", name, p, err)
			}
		}
		if err := linkUp(name); err != nil {
			return err
		}
		if !gateway.Is4() {
			return nil
		}
		route := rtentry{Flags: unix.RTF_UP | unix.RTF_GATEWAY}
		for _, a := range []*sockaddrIn{&route.Dst, &route.Genmask, &route.Gateway} {
			a.Family = unix.AF_INET
		}
		route.Gateway.Addr = gateway.As4()
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT,
			uintptr(unsafe.Pointer(&route)))
		if e != 0 && !errors.Is(e, unix.EEXIST) {
			return fmt.Errorf("cannot route through %s: %w", gateway, e)
		}
		return nil
	})
}

// linkUp brings an interface up.
func linkUp(name string) error {
	return onInterface(name, func(fd int, r *unix.Ifreq) error {
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r); err != nil {
			return fmt.Errorf("cannot bring %s up: %w", name, err)
		}
		r.SetUint16(r.Uint16() | unix.IFF_UP)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
			return fmt.Errorf("cannot bring %s up: %w", name, err)
		}
		return nil
	})
}

// connect sets the interface's MTU, addresses and routes, without IPv6 if the kernel has none.
func connect(name string, c *guest.Config) error {
	if c.MTU > 0 {
		if err := setMTU(name, c.MTU); err != nil {
			return err
		}
	}
	if c.Address6.IsValid() {
		// Once the link is up the kernel looks for duplicates, which the host's filter precludes.
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0)
	}
	if err := setAddress(name, c.Address, c.Gateway); err != nil {
		return err
	}
	if !c.Address6.IsValid() {
		return nil
	}
	return setAddress6(name, c.Address6, c.Gateway6)
}

func setMTU(name string, mtu int) error {
	return onInterface(name, func(fd int, r *unix.Ifreq) error {
		r.SetUint32(uint32(mtu))
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, r); err != nil {
			return fmt.Errorf("cannot give %s the MTU %d: %w", name, mtu, err)
		}
		return nil
	})
}

// setAddress6 sets an IPv6 address and the default route (ipv6(7), linux/ipv6.h).
func setAddress6(name string, p netip.Prefix, gateway netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	i, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	address := in6Ifreq{Addr: p.Addr().As16(), Bits: uint32(p.Bits()), Index: int32(i.Index)}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR,
		uintptr(unsafe.Pointer(&address)))
	if e != 0 && !errors.Is(e, unix.EEXIST) {
		return fmt.Errorf("cannot give %s the address %s: %w", name, p, e)
	}
	if !gateway.Is6() {
		return nil
	}
	route := in6Rtmsg{Gateway: gateway.As16(), Metric: 1, Index: int32(i.Index),
		Flags: unix.RTF_UP | unix.RTF_GATEWAY}
	_, _, e = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT,
		uintptr(unsafe.Pointer(&route)))
	if e != 0 && !errors.Is(e, unix.EEXIST) {
		return fmt.Errorf("cannot route through %s: %w", gateway, e)
	}
	return nil
}

// in6Ifreq is struct in6_ifreq of linux/ipv6.h. in6Rtmsg is struct in6_rtmsg of linux/ipv6_route.h
// on 64 bits.
type in6Ifreq struct {
	Addr  [16]byte
	Bits  uint32
	Index int32
}

type in6Rtmsg struct {
	Dst, Src, Gateway [16]byte
	Type              uint32
	DstLen, SrcLen    uint16
	Metric            uint32
	Info              uint64
	Flags             uint32
	Index             int32
}

type sockaddrIn struct {
	Family uint16
	Port   uint16
	Addr   [4]byte
	Zero   [8]byte
}

// rtentry is struct rtentry of include/uapi/linux/route.h on 64 bits.
type rtentry struct {
	_       uint64
	Dst     sockaddrIn
	Gateway sockaddrIn
	Genmask sockaddrIn
	Flags   uint16
	_       int16
	_       uint64
	_       uint64
	Metric  int16
	Dev     uintptr
	MTU     uint64
	Window  uint64
	IRTT    uint16
}
