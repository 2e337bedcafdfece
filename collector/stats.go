package collector

import (
	"context"
	"fmt"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
)

// Stats are the figures of one VM. A nil pointer stands for a source that is missing.
type Stats struct {
	Collected                                                time.Time
	State                                                    vmm.State
	Uptime                                                   *float64 // seconds since the VMM was started
	CPUPercent                                               *float64 // of one core, from CPUFrom to CPUTo: two samples of the same process
	CPUFrom, CPUTo                                           time.Time
	CPUUsec                                                  *uint64
	RSSBytes                                                 *int64
	VSZBytes                                                 *int64
	OverlayBytes                                             *int64 // allocated
	WorkBytes                                                *int64 // allocated
	DiskReadBytes, DiskWriteBytes, DiskReadOps, DiskWriteOps *uint64
	NetRxBytes, NetTxBytes, NetRxPackets, NetTxPackets       *uint64      // as the guest sees them: rx is what it received
	GroupCPUUsec                                             *uint64      // of the cgroup, where the VM has one of its own
	GroupMemoryBytes                                         *int64       // charged to it
	Guest                                                    *guest.Stats // nil if the agent did not answer
}

// Stats, Ports and Health give an answer no older than the kind's max_age, collecting if need be. They wait at most
// until ctx ends or, where the guest is asked, 3 s (vmm.ErrTimeout). Results are shared and immutable.
// Ports of a VM that does not run, or is paused, is vmm.ErrNotRunning; Stats and Health of it succeed.
// A removed VM is vmm.ErrNotFound.
func (c *Collector) Stats(ctx context.Context, v *vmm.VM) (*Stats, error) { return c.stats(ctx, v) }

func (c *Collector) stats(ctx context.Context, v subject) (*Stats, error) {
	e, err := c.entry(v)
	if err != nil {
		return nil, err
	}
	s := v.Snapshot()
	c.touch(e)
	return c.answers(e).stats.get(ctx, c, epochOf(s), c.statsMaxAge, c.statsOf(e, s, true))
}

// statsOf collects the stats of the VM that s shows, with those of the guest if that is to be asked.
func (c *Collector) statsOf(e *entry, s *vmm.Snapshot, ask bool) func(context.Context) (*Stats, error) {
	return func(ctx context.Context) (*Stats, error) {
		st := &Stats{State: s.State}
		// The guest first: it may take seconds, and the others' figures are then of the same moment as Collected.
		if ask && s.State == vmm.Running && s.Ready {
			err := c.ask(ctx, e, s, func(ctx context.Context, g guest.Agent) error {
				gs, err := g.Stats(ctx)
				if err == nil {
					st.Guest = &gs
				}
				return err
			})
			if err != nil {
				c.log.Debug("guest gave no stats", "vm", s.Name, "err", err)
			}
		}
		if s.State.Alive() {
			c.linkStats(s, st)
			c.processStats(e, s, st, true)
		}
		e.diskStats(s, st)
		c.blockStats(ctx, s, st)
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("cannot read stats of %s: %w", s.Name, err)
		}
		st.Collected = c.now()
		return st, nil
	}
}

func ptr[T any](v T) *T { return &v }
