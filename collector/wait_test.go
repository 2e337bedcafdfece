package collector

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"banger/vmm"
)

// Who waited for a port finds it in `ports`, though what the cache held is young; it is collected once for all who waited.
func TestWaitedPortIsInPorts(t *testing.T) {
	c, clock, v, g := newTest(t)
	ctx := context.Background()
	var open atomic.Bool
	g.listeners = func(context.Context) ([]vmm.Listener, error) {
		if !open.Load() {
			return nil, nil
		}
		return []vmm.Listener{{Protocol: "udp", Port: 53}, {Protocol: "tcp", Port: 80, Address: "0.0.0.0"}}, nil
	}
	if p, err := c.portsNow(ctx, v); err != nil || len(p.Rows) != 0 {
		t.Fatalf("before: %v, %v", p, err)
	}
	open.Store(true)
	clock.advance(time.Millisecond)
	for range 3 {
		if _, err := c.waitPort(ctx, v, 80); err != nil {
			t.Fatal(err)
		}
		p, err := c.portsNow(ctx, v)
		if err != nil || len(p.Rows) != 2 {
			t.Fatalf("after the wait: %v, %v", p, err)
		}
	}
	if n := c.Totals().Collections; n != 3 {
		t.Errorf("%d collections, not 3: ports, listeners, ports", n)
	}
}
