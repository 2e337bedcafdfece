package network

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/vmm"
)

// What a guest sends and receives is held to its limits, from the next packet on, also by a daemon
// that adopts it, and no longer once there is no limit.
func TestLimit(t *testing.T) {
	privileged(t)
	up(t)
	o := options(true)
	o.Prefix6 = LocalPrefix6("inst")
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { // what it looks after would be another test's
		if err := n.Release(); err != nil {
			t.Error(err)
		}
	}()
	s := newSender(t, n, 3)
	s.answerable()
	const rate = 400 << 10
	set := func(n *Network, l vmm.NetMax) {
		t.Helper()
		c := connection(3, "")
		c.Limit = l
		if err := n.Connect(c); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		limit vmm.NetMax
		adopt bool
	}{
		{"none", vmm.NetMax{}, false},
		{"both", vmm.NetMax{Rx: rate, Tx: rate}, false},
		{"adopted", vmm.NetMax{Rx: rate, Tx: rate}, true},
		{"another rate", vmm.NetMax{Rx: 2 * rate, Tx: 2 * rate}, false},
		{"one", vmm.NetMax{Rx: rate}, false},
		{"none again", vmm.NetMax{}, false},
		{"limited once more", vmm.NetMax{Rx: rate, Tx: rate}, false},
		{"lifted while no daemon ran", vmm.NetMax{}, true},
	} {
		if c.adopt {
			if err := n.Release(); err != nil {
				t.Fatal(err)
			}
			if n, err = New(o); err != nil {
				t.Fatal(err)
			}
		}
		set(n, c.limit)
		if c.adopt {
			if err := n.Settle(); err != nil {
				t.Fatal(err)
			}
		}
		for _, d := range []struct {
			name  string
			limit int64
			count func(*testing.T, *sender, time.Duration) int64
		}{{"rx", c.limit.Rx, received}, {"tx", c.limit.Tx, sent}} {
			const during = time.Second
			got := d.count(t, s, during)
			for try := 0; d.limit == 0 && got < 4*rate && try < 5; try++ { // the host is busy
				got = d.count(t, s, during)
			}
			t.Logf("%s: %s is %d KiB in %v, limit %d KiB/s", c.name, d.name, got>>10, during, d.limit>>10)
			// The kernel lets the bytes of a second pass at once after a pause.
			switch most := 2*d.limit + 3*leastBurst; {
			case d.limit == 0 && got < 4*rate:
				t.Errorf("%s: %s is limited: %d bytes", c.name, d.name, got)
			case d.limit != 0 && (got > most || got < d.limit*7/10):
				t.Errorf("%s: %s is %d bytes, want %d to %d",
					c.name, d.name, got, d.limit*7/10, most)
			}
		}
	}
	if err := n.Release(); err != nil {
		t.Error(err)
	}
}

const limitPayload = 1200

// sent returns how many bytes reach the host of what the guest sends as fast as it can.
func sent(t *testing.T, s *sender, during time.Duration) (bytes int64) {
	t.Helper()
	to := netip.AddrPortFrom(s.n.Gateway(), 53) // which a guest may ask
	l, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan int64)
	go func() {
		var n int64
		b := make([]byte, 2048)
		for {
			got, err := l.Read(b)
			if err != nil {
				done <- n
				return
			}
			n += int64(got)
		}
	}()
	datagram := make([]byte, 8+limitPayload)
	datagram[0], datagram[1] = 0x40, 1
	datagram[3] = 53
	datagram[4], datagram[5] = byte(len(datagram)>>8), byte(len(datagram)&0xff)
	frame := s.frame(to.Addr(), unix.IPPROTO_UDP, datagram)
	for end := time.Now().Add(during); time.Now().Before(end); {
		if _, err := s.tap.Write(frame); err != nil {
			t.Fatal(err)
		}
	}
	l.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	return <-done
}

// received returns how many bytes reach the guest of what the host sends it as fast as it can.
func received(t *testing.T, s *sender, during time.Duration) (bytes int64) {
	t.Helper()
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.ip4, 9)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	payload, frame := make([]byte, limitPayload), make([]byte, 4096)
	for end := time.Now().Add(during); time.Now().Before(end); {
		_, _ = c.Write(payload) // refused when the queue is full
		for {
			fds := []unix.PollFd{{Fd: int32(s.tap.Fd()), Events: unix.POLLIN}}
			if n, err := unix.Poll(fds, 0); err != nil || n == 0 {
				break
			}
			n, err := unix.Read(int(s.tap.Fd()), frame)
			if err != nil {
				t.Fatal(err)
			}
			bytes += int64(n)
		}
	}
	return bytes
}
