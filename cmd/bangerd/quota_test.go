package main

import (
	"log/slog"
	"math"
	"testing"

	"banger/vmm"
)

// TestQuotaDefaults expects shares of the host where the configuration says nothing.
func TestQuotaDefaults(t *testing.T) {
	c := defaultConfig()
	c.completeQuotas(slog.Default(), t.TempDir(), 8<<30)
	got := *c.amounts()
	if got[vmm.QuotaVMs] != 64 || got[vmm.QuotaCPUs] < leastCPUs || got[vmm.QuotaMemory] != 4<<30 {
		t.Errorf("%v", got)
	}
	if disk := got[vmm.QuotaDisk]; disk <= 0 || disk == vmm.NoQuota {
		t.Errorf("%d bytes of disk", disk)
	}
	if n := c.overcommitted(8 << 30); n != 8<<30 {
		t.Errorf("running VMs may use %d", n)
	}
	c = defaultConfig()
	c.QuotaMemory, c.OvercommitMemory = 5, ratio(math.Inf(1))
	c.completeQuotas(slog.Default(), "/nonexistent", 8<<30)
	got = *c.amounts()
	if got[vmm.QuotaMemory] != 5 || got[vmm.QuotaDisk] != vmm.NoQuota {
		t.Errorf("%v", got)
	}
	if n := c.overcommitted(8 << 30); n != vmm.NoQuota {
		t.Errorf("running VMs may use %d", n)
	}
}
