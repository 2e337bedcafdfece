package collector

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"banger/vmm"
)

var vmmMetricsKind = register(kind{
	name: "vmm_metrics", noun: "the VMM's metrics", polled: true, serves: alive,
	maxAge:  func(c *Collector) time.Duration { return c.statsMaxAge },
	collect: collectVMMMetrics,
})

// VMMMetrics returns the VMM's own report, as one JSON object, no older than the max_age of stats.
// It waits 3 s at most (context.DeadlineExceeded). vmm.ErrNotRunning if no VMM lives,
// vmm.ErrUnsupported if it has no report.
func (c *Collector) VMMMetrics(ctx context.Context, v VM) (json.RawMessage, error) {
	report, err := read[json.RawMessage](ctx, c, v, vmmMetricsKind)
	if err != nil {
		return nil, err
	}
	return *report, nil
}

func collectVMMMetrics(ctx context.Context, t *task) (any, error) {
	if t.s.Machine == nil {
		return nil, fmt.Errorf("cannot read %s of %s: %w", t.noun, t.s.Name, vmm.ErrNotRunning)
	}
	ctx, cancel := context.WithTimeout(ctx, t.c.guestTimeout)
	defer cancel()
	report, err := t.s.Machine.Metrics(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s of %s: %w", t.noun, t.s.Name, err)
	}
	return &report, nil
}
