package collector

import (
	"sync"
	"time"

	"banger/vmm"
)

// links are the counters of all taps as they were last dumped. One dump serves all collections of a moment: for a thousand links it costs
// what reading the sysfs of ten does.
type links struct {
	dump func() (map[uint64]vmm.LinkStats, error) // nil: no link figures; immutable

	mu sync.Mutex
	// guarded by mu
	last   *linkDump
	flight chan struct{} // closed when the dump under way has ended; nil for none
}

// linkDump is immutable.
type linkDump struct {
	at  time.Time // when it was begun
	by  map[uint64]vmm.LinkStats
	err error
}

// since gives a dump that was not begun before oldest. It blocks for the kernel only.
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

// linkStats fills in the counters of the VM's tap; nothing where it has none. What the host sends into the tap is what the guest receives.
func (c *Collector) linkStats(s *vmm.Snapshot, st *Stats) {
	if c.links.dump == nil || s.Config.Net != vmm.NetBridge || !s.Address.IsValid() {
		return
	}
	d := c.links.since(c.now().Add(-c.statsMaxAge/linkShare), c.now)
	if d.err != nil {
		c.log.Warn("cannot read the figures of links", "err", d.err)
		return
	}
	l, ok := d.by[s.Serial]
	if !ok {
		return
	}
	v := &l
	st.NetRxBytes, st.NetTxBytes, st.NetRxPackets, st.NetTxPackets = &v.TxBytes, &v.RxBytes, &v.TxPackets, &v.RxPackets
}
