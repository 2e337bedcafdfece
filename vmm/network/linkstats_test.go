package network

import (
	"context"
	"encoding/binary"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"banger/vmm"
)

func TestLinkStats(t *testing.T) {
	privileged(t)
	n, err := New(options(false))
	if err != nil {
		t.Fatal(err)
	}
	f, err := n.Tap(context.Background(), 37, "uuid-1")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// What is written to the tap is received by the host: a header of virtio-net and a frame to everybody.
	frame := make([]byte, 10+60)
	for i := range 6 {
		frame[10+i] = 0xff
	}
	for range 3 {
		if _, err := f.Write(frame); err != nil {
			t.Fatal(err)
		}
	}
	next, err := New(options(false)) // of the next daemon, which made no tap
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []*Network{n, next, next} {
		got, err := n.LinkStats()
		if err != nil {
			t.Fatal(err)
		}
		l, err := netlink.LinkByName(n.tapName(37))
		if err != nil {
			t.Fatal(err)
		}
		want := l.Attrs().Statistics
		if s := got[37]; len(got) != 1 || s.RxPackets != 3 || s.RxBytes != 180 || s.TxPackets > want.TxPackets || s.TxBytes > want.TxBytes {
			t.Errorf("%+v, netlink says %+v", got, want)
		}
	}
	// The alias tells whose a link is, not its name.
	other := options(false)
	other.Instance = "another"
	if got, err := (&Network{o: other}).LinkStats(); err != nil || len(got) != 0 {
		t.Errorf("another daemon's taps: %v, %v", got, err)
	}
}

func FuzzLinkStats(f *testing.F) {
	m := make([]byte, statsHeader)
	binary.NativeEndian.PutUint32(m[4:], 9)
	values := make([]byte, 25*8)
	values[0] = 5
	f.Add(append(m, nl.NewRtAttr(statsLink64, values).Serialize()...))
	f.Add(m)
	f.Add([]byte{1, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		if index, s, ok := parseLinkStats(b); !ok && s != (vmm.LinkStats{}) {
			t.Fatalf("%d %+v", index, s)
		}
	})
}
