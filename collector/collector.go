// Package collector reads what VMs do: process figures, disks, links, the guest's agent.
//
// There is one cache entry per VM and kind, one collection in flight for all who ask, and a
// poller that keeps warm what was read in the last ten seconds. No lock of a VM's life is held while
// a guest is asked. A reader that goes away ends its wait, not the collection of the others.
package collector

import (
	"context"
	"log/slog"
	"time"

	"banger/vmm"
)

// Options of a Collector.
type Options struct {
	Manager      *vmm.Manager
	Log          *slog.Logger
	StatsMaxAge  time.Duration // 1 s if 0
	PortsMaxAge  time.Duration // 2 s
	HealthMaxAge time.Duration // 1 s
	PollInterval time.Duration // 10 s
}

// Collector is the cache and the poller.
type Collector struct{}

// New starts the poller; Close ends it and waits for every collection in flight.
func New(o Options) *Collector { panic("not built yet") }
func (c *Collector) Close()    { panic("not built yet") }

// Stats, Ports and Health give an answer no older than the kind's max_age, collecting if need be. They wait at most
// until ctx ends or, where the guest is asked, 3 s (vmm.ErrTimeout). Results are shared and immutable.
// Ports of a VM that does not run is vmm.ErrNotRunning; Stats and Health of it succeed.
func (c *Collector) Stats(ctx context.Context, v *vmm.VM) (*Stats, error)   { panic("not built yet") }
func (c *Collector) Ports(ctx context.Context, v *vmm.VM) (*Ports, error)   { panic("not built yet") }
func (c *Collector) Health(ctx context.Context, v *vmm.VM) (*Health, error) { panic("not built yet") }

// WaitHealthy blocks until the VM's agent has answered and gives how long after its start that was;
// WaitPort until something in the guest listens on TCP port. vmm.ErrGone when it can no longer come, vmm.ErrNotFound when the VM is removed.
// A VM that is stopped is waited for: somebody may start it.
func (c *Collector) WaitHealthy(ctx context.Context, v *vmm.VM) (time.Duration, error) {
	panic("not built yet")
}
func (c *Collector) WaitPort(ctx context.Context, v *vmm.VM, port int) (time.Duration, error) {
	panic("not built yet")
}

// Known gives what the cache holds of a VM, however old, nil where it holds nothing of this run; it never collects.
func (c *Collector) Known(v *vmm.VM) (*Stats, *Health) { panic("not built yet") }

// Totals are the daemon's own counters for the host's `stats`.
func (c *Collector) Totals() Totals { panic("not built yet") }

// Totals count since the daemon's start.
type Totals struct {
	Collections uint64 // collections begun, of all kinds
	CacheHits   uint64 // reads answered without one
	Errors      uint64 // collections that failed
	GuestCalls  uint64 // requests sent to agents
}

// Stats are the figures of one VM. A nil pointer stands for a source that is missing.
type Stats struct {
	Collected                                                time.Time
	State                                                    vmm.State
	Uptime                                                   *float64 // seconds since the VMM was started
	CPUPercent                                               *float64 // of one core, since the previous sample of the same process
	CPUUsec                                                  *uint64
	RSSBytes                                                 *int64
	VSZBytes                                                 *int64
	OverlayBytes                                             *int64 // allocated
	WorkBytes                                                *int64 // allocated
	DiskReadBytes, DiskWriteBytes, DiskReadOps, DiskWriteOps *uint64
	NetRxBytes, NetTxBytes, NetRxPackets, NetTxPackets       *uint64         // as the guest sees them: rx is what it received
	Guest                                                    *vmm.GuestStats // nil if the agent did not answer
}

// Ports is the table of listeners, sorted and without duplicates.
type Ports struct {
	Collected time.Time
	Rows      []Port
}

// Port is one row of `ports`. Text is as the guest gave it; whoever shows it escapes it.
type Port struct {
	Scheme   string // http https tcp udp
	Port     int
	Endpoint string
	Address  string // bind address
	PID      int
	Process  string
	Command  string
}

// Health is one answer about a VM's health.
type Health struct {
	Collected time.Time
	Status    string // healthy unhealthy starting paused stopped
	Reason    string // of unhealthy
}

func (h *Health) String() string {
	if h.Reason == "" {
		return h.Status
	}
	return h.Status + " " + h.Reason
}
