package collector

import (
	"context"
	"sync"
	"time"

	"banger/vmm"
)

var _ = addSource(source{fill: fillLink, metrics: []Metric{
	counter("banger_vm_network_receive_bytes_total", "Bytes that the guest received.", 1,
		func(s *Stats) *uint64 { return s.NetRxBytes }),
	counter("banger_vm_network_transmit_bytes_total", "Bytes that the guest sent.", 1,
		func(s *Stats) *uint64 { return s.NetTxBytes }),
	counter("banger_vm_network_receive_packets_total", "Packets that the guest received.", 1,
		func(s *Stats) *uint64 { return s.NetRxPackets }),
	counter("banger_vm_network_transmit_packets_total", "Packets that the guest sent.", 1,
		func(s *Stats) *uint64 { return s.NetTxPackets }),
}})

// links are the counters of all taps at the last dump. One dump serves all collections of a moment:
// one of a thousand links costs as much as reading the sysfs of ten.
type links struct {
	dump func() (map[uint64]vmm.LinkStats, error) // nil: no link figures; immutable

	mu sync.Mutex
	// guarded by mu
	last   *linkDump
	flight chan struct{} // closed when the dump under way has ended; nil for none
}

// linkDump is immutable.
type linkDump struct {
	at  time.Time // when it began
	by  map[uint64]vmm.LinkStats
	err error
}

// since returns a dump that began at oldest or later. It blocks for the kernel only.
func (l *links) since(oldest time.Time, now func() time.Time) *linkDump {
	for {
		l.mu.Lock()
		if d := l.last; d != nil && !d.at.Before(oldest) {
			l.mu.Unlock()
			return d
		}
		if wait := l.flight; wait != nil {
			l.mu.Unlock()
			<-wait
			continue
		}
		ended := make(chan struct{})
		l.flight = ended
		l.mu.Unlock()
		d := &linkDump{at: now()}
		d.by, d.err = l.dump()
		l.mu.Lock()
		l.last, l.flight = d, nil
		l.mu.Unlock()
		close(ended)
	}
}

// fillLink sets the counters of the VM's tap. The guest receives what the host sends into the tap.
func fillLink(_ context.Context, t *task, st *Stats) {
	c, s := t.c, t.s
	if c.links.dump == nil || !s.State.Alive() || s.Config.Net != vmm.NetBridge ||
		!s.Address.IsValid() {
		return
	}
	d := c.links.since(c.now().Add(-c.statsMaxAge/linkShare), c.now)
	if d.err != nil {
		c.log.Warn("cannot read the figures of links", "err", d.err)
		return
	}
	if l, ok := d.by[s.Serial]; ok {
		st.NetRxBytes, st.NetTxBytes = &l.TxBytes, &l.RxBytes
		st.NetRxPackets, st.NetTxPackets = &l.TxPackets, &l.RxPackets
	}
}
