package vmm

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"

	"banger/vmm/guest"
)

// Feature is an ability that not every driver has, as `vmms` names it.
type Feature string

// The features. Each but FeatureBridge, FeatureConfined, FeatureUDP and those of Limits is a group
// of optional methods.
const (
	FeatureAgent    Feature = "agent"    // Machine.Guest
	FeatureBalloon  Feature = "balloon"  // Machine.Balloon
	FeatureBlock    Feature = "block"    // Machine.BlockStats
	FeatureBridge   Feature = "bridge"   // net = bridge: machines have a tap and an address
	FeatureConfined Feature = "confined" // a VMM sees nothing of the host but what it had open
	FeatureConsole  Feature = "console"  // Machine.Console
	FeatureDisks    Feature = "disks"    // the methods of Driver for disks
	FeatureForward  Feature = "forward"  // Machine.Forward
	FeatureGrow     Feature = "grow"     // Machine.GrowDisk
	FeatureMetrics  Feature = "metrics"  // Machine.Metrics
	FeaturePause    Feature = "pause"    // Machine.Pause, Resume, Paused and Full
	FeaturePower    Feature = "power"    // Machine.PressPower
	FeatureSnapshot Feature = "snapshot" // Machine's Snapshotter
	FeatureUDP      Feature = "udp"      // forwarded ports carry datagrams as well

	// What Machine.Limit and Network enforce of Limits, by the names of the files.
	FeatureCPUMax    Feature = "cpu.max"
	FeatureCPUWeight Feature = "cpu.weight"
	FeatureIOMax     Feature = "io.max"
	FeatureMemoryMax Feature = "memory.max"
	FeatureNetMax    Feature = "net.max"
	FeaturePIDsMax   Feature = "pids.max"
)

// Features holds all features, sorted.
var Features = []Feature{
	FeatureAgent, FeatureBalloon, FeatureBlock, FeatureBridge, FeatureConfined, FeatureConsole,
	FeatureCPUMax, FeatureCPUWeight, FeatureDisks, FeatureForward, FeatureGrow, FeatureIOMax,
	FeatureMemoryMax, FeatureMetrics, FeatureNetMax, FeaturePause, FeaturePIDsMax, FeaturePower,
	FeatureSnapshot, FeatureUDP,
}

// Capabilities declare what a driver can do on this host. They are immutable.
type Capabilities struct {
	Name     string             // the word of the file `vmm`
	Accel    string             // what runs the CPUs: kvm, tcg, fake
	Unusable string             // why no machine can start here; empty if machines can
	Lacks    map[Feature]string // why the driver lacks a feature; without an entry it has it
	MaxCPUs  int                // of one machine; 0 for no limit of the driver's
	Overhead int64              // bytes that a VMM may need beside the guest's memory
}

// Lack returns why the driver lacks a feature, or an empty string if it has it.
func (c Capabilities) Lack(f Feature) string {
	if c.Unusable != "" {
		return c.Unusable
	}
	return c.Lacks[f]
}

// refuse returns the error of a method that the driver does not override.
func (c Capabilities) refuse(f Feature) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, cmp.Or(c.Lack(f), "it has no "+string(f)))
}

// BaseDriver refuses everything with ErrUnsupported. Drivers embed it and override what they can
// do. Alone it stands for a driver that this host cannot use, for the reason in Unusable.
type BaseDriver struct{ Can Capabilities }

// Capabilities implements Driver.
func (b BaseDriver) Capabilities() Capabilities { return b.Can }

// Start implements Driver.
func (b BaseDriver) Start(context.Context, *Spec, func(Notice)) (Machine, error) {
	return nil, fmt.Errorf("%w: %s", ErrUnsupported, b.Can.Unusable)
}

// Adopt implements Driver.
func (b BaseDriver) Adopt(context.Context, *Spec, Process, func(Notice)) (Machine, error) {
	return nil, fmt.Errorf("%w: %s", ErrNotFound, b.Can.Unusable)
}

// Sweep implements Driver.
func (BaseDriver) Sweep(context.Context, string, func(uuid string) bool) error { return nil }

// HostMemory returns 0: no machine uses any.
func (BaseDriver) HostMemory(*Spec) int64 { return 0 }

// MakeDisks implements Driver.
func (b BaseDriver) MakeDisks(context.Context, *Spec) error { return b.Can.refuse(FeatureDisks) }

// Disks implements Driver.
func (b BaseDriver) Disks(*Spec) Snapshotter { return BaseMachine(b) }

// RestoreDisks implements Driver.
func (b BaseDriver) RestoreDisks(context.Context, *Spec, string) error {
	return b.Can.refuse(FeatureDisks)
}

// ExportDisk implements Driver.
func (b BaseDriver) ExportDisk(context.Context, *Spec, Disk) (*os.File, error) {
	return nil, b.Can.refuse(FeatureDisks)
}

// ImportDisks implements Driver.
func (b BaseDriver) ImportDisks(context.Context, *Spec) error { return b.Can.refuse(FeatureDisks) }

// BaseMachine implements the optional methods of a Machine: it refuses them with ErrUnsupported.
// Machines embed it, with their driver's Capabilities, and override what they can do.
type BaseMachine struct{ Can Capabilities }

// Guest returns nil: there is no agent.
func (BaseMachine) Guest() guest.Agent { return nil }

// Console returns nil: there is no console.
func (BaseMachine) Console() Console { return nil }

// Pause implements Machine.
func (b BaseMachine) Pause(context.Context) error { return b.Can.refuse(FeaturePause) }

// Resume implements Machine.
func (b BaseMachine) Resume(context.Context) error { return b.Can.refuse(FeaturePause) }

// Paused returns false.
func (BaseMachine) Paused() bool { return false }

// Full returns false.
func (BaseMachine) Full() bool { return false }

// TakeSnapshot implements Snapshotter.
func (b BaseMachine) TakeSnapshot(context.Context, string) error {
	return b.Can.refuse(FeatureSnapshot)
}

// DropSnapshot implements Snapshotter.
func (b BaseMachine) DropSnapshot(context.Context, string) error {
	return b.Can.refuse(FeatureSnapshot)
}

// GrowDisk implements Machine.
func (b BaseMachine) GrowDisk(context.Context, int64) error { return b.Can.refuse(FeatureGrow) }

// PressPower implements Machine.
func (b BaseMachine) PressPower(context.Context) error { return b.Can.refuse(FeaturePower) }

// Forward implements Machine.
func (b BaseMachine) Forward(context.Context, []Publication) error {
	return b.Can.refuse(FeatureForward)
}

// BlockStats implements Machine.
func (b BaseMachine) BlockStats(context.Context) (BlockStats, error) {
	return BlockStats{}, b.Can.refuse(FeatureBlock)
}

// Limit implements Machine. No limits are in force by themselves.
func (b BaseMachine) Limit(_ context.Context, l *Limits) error {
	if *l == (Limits{}) {
		return nil
	}
	return b.Can.refuse(FeatureCPUMax)
}

// Balloon implements Machine.
func (b BaseMachine) Balloon(context.Context, int64) error { return b.Can.refuse(FeatureBalloon) }

// Metrics implements Machine.
func (b BaseMachine) Metrics(context.Context) (json.RawMessage, error) {
	return nil, b.Can.refuse(FeatureMetrics)
}
