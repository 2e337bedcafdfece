// Forge sends frames from a guest, as root, or listens for them. Most frames lie about their sender
// or about its role, a few are honest.
//
//	forge send|listen LINK OWN-MAC OWN4 OWN6 VICTIM-MAC VICTIM4 VICTIM6
//
// Listen prints "ready" and, after the last frame, the sorted names of all frames that arrived.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"
)

var (
	broadcast = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes  = netip.MustParseAddr("ff02::1").AsSlice()
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "forge:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 8 {
		return errors.New("usage: forge send|listen LINK " +
			"OWN-MAC OWN4 OWN6 VICTIM-MAC VICTIM4 VICTIM6")
	}
	link, err := net.InterfaceByName(args[1])
	if err != nil {
		return err
	}
	const all = 0x0300 // htons(ETH_P_ALL)
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, all)
	if err != nil {
		return err
	}
	at := &syscall.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}
	if err := syscall.Bind(fd, at); err != nil {
		return err
	}
	var f forger
	for i, mac := range map[int]*net.HardwareAddr{2: &f.mac, 5: &f.victimMAC} {
		if *mac, err = net.ParseMAC(args[i]); err != nil {
			return err
		}
	}
	for i, a := range map[int]*netip.Addr{3: &f.own4, 4: &f.own6, 6: &f.victim4, 7: &f.victim6} {
		if *a, err = netip.ParseAddr(args[i]); err != nil {
			return err
		}
	}
	frames := f.frames()
	if args[0] == "listen" {
		return listen(fd, frames)
	}
	for range 3 {
		for _, fr := range frames {
			if err := syscall.Sendto(fd, fr.bytes, 0, at); err != nil {
				return err
			}
		}
	}
	return syscall.Sendto(fd, frames[len(frames)-1].bytes, 0, at)
}

// frame is a frame with a name for the test.
type frame struct {
	name  string
	bytes []byte
}

func listen(fd int, frames []frame) error {
	second := &syscall.Timeval{Sec: 1}
	err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, second)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	known := make(map[string]string)
	for _, fr := range frames {
		known[string(fr.bytes)] = fr.name
		if b := fr.bytes; b[12] == 0x81 { // sockets receive it without its tag
			known[string(append(slices.Clone(b[:12]), b[16:]...))] = fr.name
		}
	}
	var names []string
	ends := 0
	b := make([]byte, 1<<16)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		n, _, err := syscall.Recvfrom(fd, b, 0)
		if err != nil {
			continue // no frame within a second
		}
		name := known[string(b[:n])]
		if name == "last" {
			ends++
		} else if name != "" {
			names = append(names, name)
		}
		if ends == 4 {
			slices.Sort(names)
			for _, n := range slices.Compact(names) {
				fmt.Println(n)
			}
			return nil
		}
	}
	return fmt.Errorf("the last frame did not arrive; %q did", names)
}

// forger holds the addresses of the sender and of the guest that it pretends to be.
type forger struct {
	mac, victimMAC               net.HardwareAddr
	own4, own6, victim4, victim6 netip.Addr
}

// frames returns all frames, an honest one last.
func (f *forger) frames() []frame {
	var all []frame
	add := func(name string, b []byte) { all = append(all, frame{name, b}) }
	of := func(kind uint16) func([]byte) []byte {
		return func(p []byte) []byte { return f.ether(f.mac, kind, p) }
	}
	v4, v6, arp := of(0x0800), of(0x86dd), of(0x0806)
	local := f.linkLocal(f.mac)
	target := func(a netip.Addr) []byte { return append(make([]byte, 4), a.AsSlice()...) }
	option := func(kind byte, mac net.HardwareAddr) []byte {
		return append([]byte{kind, 1}, mac...)
	}
	icmp := func(from netip.Addr, kind byte, body ...[]byte) []byte {
		return f.ip6(from, 58, f.icmp6(from, kind, slices.Concat(body...)))
	}
	prefix := slices.Concat([]byte{3, 4, 64, 0xc0, 0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0, 0, 0},
		netip.MustParseAddr("2001:db8:bad::").AsSlice())
	router := slices.Concat([]byte{64, 0, 0xff, 0xff}, make([]byte, 8), option(1, f.mac), prefix)
	advert := f.icmp6(local, 134, router)

	add("honest", v4(f.udp4(f.own4, 9, 9)))
	add("honest6", v6(f.ip6(f.own6, 17, f.udp(9, 9))))
	add("honest-arp", arp(f.arp(1, f.mac, f.own4, f.victim4)))
	add("honest-advert", v6(icmp(f.own6, 136, target(f.own6), option(2, f.mac))))

	add("mac", f.ether(f.victimMAC, 0x0800, f.udp4(f.own4, 9, 9)))
	add("address", v4(f.udp4(f.victim4, 9, 9)))
	add("address-none", v4(f.udp4(netip.IPv4Unspecified(), 9, 9)))
	add("address-loopback", v4(f.udp4(netip.MustParseAddr("127.0.0.1"), 9, 9)))
	add("address6", v6(f.ip6(f.victim6, 17, f.udp(9, 9))))
	add("address6-local", v6(f.ip6(f.linkLocal(f.victimMAC), 17, f.udp(9, 9))))
	add("address6-none", v6(f.ip6(netip.IPv6Unspecified(), 17, f.udp(9, 9))))
	add("arp-reply", arp(f.arp(2, f.mac, f.victim4, f.own4)))
	add("arp-request", arp(f.arp(1, f.mac, f.victim4, f.victim4)))
	add("arp-mac", arp(f.arp(2, f.victimMAC, f.own4, f.own4)))
	add("arp-reverse", f.ether(f.mac, 0x8035, f.arp(4, f.mac, f.victim4, f.own4)))
	add("advert", v6(icmp(local, 136, target(f.victim6), option(2, f.mac))))
	add("advert-mac", v6(icmp(local, 136, target(f.own6), option(2, f.victimMAC))))
	add("advert-second", v6(icmp(local, 136, target(f.own6),
		[]byte{14, 1, 1, 2, 3, 4, 5, 6}, option(2, f.victimMAC))))
	add("solicit-mac", v6(icmp(local, 135, target(f.own6), option(1, f.victimMAC))))
	add("solicit-taken", v6(icmp(netip.IPv6Unspecified(), 135, target(f.victim6))))
	add("router", v6(icmp(local, 134, router)))
	add("router-behind", v6(f.ip6(local, 60,
		slices.Concat([]byte{58, 0, 1, 4, 0, 0, 0, 0}, advert))))
	add("redirect", v6(icmp(local, 137, target(f.victim6), f.own6.AsSlice())))
	// First fragments of such messages. The type of the message is in the second fragment (RFC
	// 6980, RFC 7113).
	add("router-fragment", v6(f.ip6(local, 44,
		slices.Concat([]byte{60, 0, 0, 1, 0, 0, 0, 1}, []byte{58, 0, 1, 4, 0, 0, 0, 0}))))
	add("advert-fragment", v6(f.ip6(local, 44, slices.Concat([]byte{58, 0, 0, 1, 0, 0, 0, 2},
		f.icmp6(local, 136, target(f.victim6))[:8]))))
	add("dhcp", v4(f.udp4(f.own4, 67, 68)))
	add("dhcp6", v6(f.ip6(local, 17, f.udp(547, 546))))
	tagged := of(0x8100)
	add("vlan", tagged(slices.Concat([]byte{0, 5, 0x08, 0x00}, f.udp4(f.own4, 9, 10))))
	add("vlan-0", tagged(slices.Concat([]byte{0, 0, 0x08, 0x00}, f.udp4(f.own4, 9, 11))))
	add("spanning-tree", slices.Concat([]byte{0x01, 0x80, 0xc2, 0, 0, 0}, f.mac,
		[]byte{0, 38, 0x42, 0x42, 3}, make([]byte, 35)))
	add("other", f.ether(f.mac, 0x88b5, make([]byte, 46)))
	add("last", v4(f.udp4(f.own4, 9, 12)))
	return all
}

func (f *forger) linkLocal(m net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80,
		8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

func (f *forger) ether(from net.HardwareAddr, kind uint16, payload []byte) []byte {
	return slices.Concat(broadcast, from, binary.BigEndian.AppendUint16(nil, kind), payload)
}

func (f *forger) arp(op byte, mac net.HardwareAddr, sender, target netip.Addr) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, op},
		mac, sender.AsSlice(), make([]byte, 6), target.AsSlice())
}

// udp returns a datagram without a checksum. IPv4 allows that, and in IPv6 no receiver accepts it.
func (f *forger) udp(from, to uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	return append(binary.BigEndian.AppendUint16(b, to), 0, 8, 0, 0)
}

func (f *forger) udp4(from netip.Addr, source, dest uint16) []byte {
	b := slices.Concat([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0},
		from.AsSlice(), []byte{255, 255, 255, 255}, f.udp(source, dest))
	binary.BigEndian.PutUint16(b[10:], checksum(b[:20]))
	return b
}

func (f *forger) ip6(from netip.Addr, next byte, payload []byte) []byte {
	return slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(payload)), next, 255},
		from.AsSlice(), allNodes, payload)
}

func (f *forger) icmp6(from netip.Addr, kind byte, body []byte) []byte {
	m := append([]byte{kind, 0, 0, 0}, body...)
	pseudo := slices.Concat(from.AsSlice(), allNodes, []byte{0, 0, 0, byte(len(m)), 0, 0, 0, 58}, m)
	binary.BigEndian.PutUint16(m[2:], checksum(pseudo))
	return m
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
