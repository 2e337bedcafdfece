package collector

import (
	"context"
	"encoding/json"
	"fmt"

	"banger/vmm"
)

// VMMMetrics gives what the VMM itself reports, as one JSON object, no older than the max_age of stats; it waits 3 s at most
// (context.DeadlineExceeded). vmm.ErrNotRunning where no VMM lives, vmm.ErrUnsupported where it reports nothing.
func (c *Collector) VMMMetrics(ctx context.Context, v *vmm.VM) (json.RawMessage, error) {
	return c.vmmMetrics(ctx, v)
}

func (c *Collector) vmmMetrics(ctx context.Context, v subject) (json.RawMessage, error) {
	e, err := c.entry(v)
	if err != nil {
		return nil, err
	}
	s := v.Snapshot()
	if !s.State.Alive() {
		return nil, fmt.Errorf("cannot read the VMM's metrics of %s, it is %s: %w", s.Name, s.State, vmm.ErrNotRunning)
	}
	c.touch(e)
	b, err := c.answers(e).vmmMetrics.get(ctx, c, epochOf(s), c.statsMaxAge, c.vmmMetricsOf(s))
	if err != nil {
		return nil, err
	}
	return *b, nil
}

// vmmMetricsOf asks the VMM of the VM that s shows.
func (c *Collector) vmmMetricsOf(s *vmm.Snapshot) func(context.Context) (*json.RawMessage, error) {
	return func(ctx context.Context) (*json.RawMessage, error) {
		ctx, cancel := context.WithTimeout(ctx, c.guestTimeout)
		defer cancel()
		b, err := s.Machine.Metrics(ctx)
		if err != nil {
			return nil, fmt.Errorf("cannot read the VMM's metrics of %s: %w", s.Name, err)
		}
		return &b, nil
	}
}
