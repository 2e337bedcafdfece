package collector

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
)

// Who waited for a port finds it in `ports`, though what the cache held is young; it is collected once for all who waited.
func TestWaitedPortIsInPorts(t *testing.T) {
	c, clock, v, g := newTest(t)
	ctx := context.Background()
	var open atomic.Bool
	g.listeners = func(context.Context) ([]guest.Listener, error) {
		if !open.Load() {
			return nil, nil
		}
		return []guest.Listener{{Protocol: "udp", Port: 53}, {Protocol: "tcp", Port: 80, Address: "0.0.0.0"}}, nil
	}
	if p, err := c.Ports(ctx, v); err != nil || len(p.Rows) != 0 {
		t.Fatalf("before: %v, %v", p, err)
	}
	open.Store(true)
	clock.advance(time.Millisecond)
	for range 3 {
		if _, err := c.WaitPort(ctx, v, 80); err != nil {
			t.Fatal(err)
		}
		p, err := c.Ports(ctx, v)
		if err != nil || len(p.Rows) != 2 {
			t.Fatalf("after the wait: %v, %v", p, err)
		}
	}
	if n := c.Totals().Collections; n != 3 {
		t.Errorf("%d collections, not 3: ports, listeners, ports", n)
	}
}

// Events that were missed are made up for: entries of VMs that are gone go, and the health of the others is told.
func TestReconcile(t *testing.T) {
	c, _, v, _ := newTest(t)
	if _, err := c.Stats(context.Background(), v); err != nil {
		t.Fatal(err)
	}
	c.find = func(uint64) VM { return v }
	c.reconcile()
	if c.publishUntold(); v.LastHealth() != Healthy {
		t.Errorf("health told is %q", v.LastHealth())
	}
	c.exists = func(uint64) bool { return false }
	c.each = func(func(VM)) {}
	c.reconcile()
	if n := len(c.entries); n != 0 {
		t.Errorf("%d entries of removed VMs are kept", n)
	}
}

// diskMachine is a machine whose VMM counts, or does not answer.
type diskMachine struct {
	guestMachine
	err error
}

func (m diskMachine) BlockStats(ctx context.Context) (vmm.BlockStats, error) {
	return vmm.BlockStats{ReadBytes: 1, WriteBytes: 2, ReadOps: 3, WriteOps: 4}, m.err
}

func TestBlockStats(t *testing.T) {
	c, clock, v, g := newTest(t)
	dir := v.Snapshot().Dir
	read := func() *Stats {
		t.Helper()
		clock.advance(time.Minute)
		st, err := c.Stats(context.Background(), v)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	v.update(func(s *vmm.Snapshot) { s.Machine = diskMachine{guestMachine: guestMachine{guest: g}} })
	if st := read(); st.DiskReadBytes != nil {
		t.Error("a VM without disks has block figures")
	}
	if err := os.Mkdir(vmm.DisksDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vmm.DiskPath(dir, vmm.DiskWork), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	v.update(func(s *vmm.Snapshot) { s.Config.Disk = 1 << 20 })
	if st := read(); st.DiskReadBytes == nil || *st.DiskReadBytes != 1 || *st.DiskWriteBytes != 2 || *st.DiskReadOps != 3 || *st.DiskWriteOps != 4 {
		t.Errorf("block figures %v", st)
	}
	v.update(func(s *vmm.Snapshot) {
		s.Machine = diskMachine{guestMachine{guest: g}, errors.New("no answer")}
	})
	if st := read(); st.DiskReadBytes != nil || st.WorkBytes == nil {
		t.Errorf("figures of a VMM that does not answer: %v", st)
	}
}
