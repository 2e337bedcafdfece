package qemu

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"

	"banger/internal/host"
	"banger/vmm"
)

// What a QEMU may have at most. It has some threads of its own, one for each CPU, and 64 that wait
// for the host's disks (thread_pool_max of QEMU's util/async.c). Each port that `net` `user`
// forwards, and each connection through it, is a descriptor.
const (
	maxFiles   = 4096
	maxThreads = 512 // beside one for each CPU
)

// fileSlack is what the file of a disk may take beside its clusters, bytes: qcow2's tables and
// header. Files that are no disks are smaller.
const fileSlack = 64 << 20

// maxSnapshots bounds what a QEMU's own count of snapshots is believed.
const maxSnapshots = 256

// mostOverhead is what QEMU may ever need beside the guest's memory, bytes. memory.max leaves room
// for it.
func mostOverhead(accel string) int64 {
	const own = 128 << 20
	if accel == tcg {
		return own + maxTranslations<<20
	}
	return own
}

// largestFile returns how long a file of the VM may become, in bytes: as its longest disk, with all
// of its clusters once for the disk and once for each snapshot. A disk's own header does not count,
// which a QEMU that its guest has taken over may write.
func largestFile(spec *vmm.Spec, snapshots int) uint64 {
	const most = 1 << 50 // more than any disk has
	longest := int64(0)
	for _, d := range spec.Disks {
		size := d.Size
		if d.Base != "" {
			if base, err := baseSize(d); err == nil {
				size = max(size, base)
			}
		}
		size = min(size, most)
		longest = max(longest, (size+size/64)*int64(1+snapshots))
		if info, err := os.Lstat(d.Path); err == nil {
			longest = max(longest, info.Size())
		}
	}
	return uint64(longest + fileSlack)
}

// settle bounds a new QEMU, which waits for its monitor's first client and has opened no disk. It
// also begins to give it its group: the kernel needs some milliseconds for that, in which QEMU
// goes on starting. joined waits for the end of this, and may be called again. The caller calls it
// before the guest runs, also after an error.
func (d *Driver) settle(
	ctx context.Context, spec *vmm.Spec, m *Machine,
) (joined func() error, err error) {
	b := host.Bounds{FileSize: largestFile(spec, spec.Snapshots), Files: maxFiles, OOM: host.OOMVMM}
	if spec.UID >= 0 { // otherwise all of the user's processes would count
		b.Processes = uint64(maxThreads + spec.Config.CPUs)
	}
	if err := b.Apply(m.proc.PID, spec.UID, spec.GID); err != nil {
		return func() error { return nil }, err
	}
	done := make(chan error, 1)
	go func() { done <- d.join(ctx, spec, m) }()
	return sync.OnceValue(func() error { return <-done }), nil
}

// join gives a QEMU its group. Without limits a VM runs without one, too.
func (d *Driver) join(ctx context.Context, spec *vmm.Spec, m *Machine) error {
	if d.groups == nil {
		return nil
	}
	g, err := d.groups.Join(ctx, spec.ID, spec.Name, m.proc.PID, &spec.Config.Limits)
	switch {
	case err == nil:
		m.group = g
	case grouped(&spec.Config.Limits):
		return fmt.Errorf("cannot limit it: %w", err)
	default:
		d.log.Warn("a VM has no cgroup of its own", "vm", spec.Name, "err", err)
	}
	return nil
}

// regroup finds the group of an adopted QEMU, or gives it one.
func (d *Driver) regroup(ctx context.Context, spec *vmm.Spec, m *Machine) {
	if d.groups == nil {
		return
	}
	if m.group = d.groups.Find(spec.ID, m.proc.PID); m.group != nil {
		return
	}
	if err := d.join(ctx, spec, m); err != nil {
		d.log.Warn("an adopted VM has no cgroup of its own", "vm", spec.Name, "err", err)
	}
}

// grouped reports whether some of the limits need a group.
func grouped(l *vmm.Limits) bool {
	return *l != vmm.Limits{IOMax: l.IOMax, NetMax: l.NetMax}
}

// Limit implements vmm.Machine.
func (m *Machine) Limit(ctx context.Context, l *vmm.Limits) error {
	if m.isDone() {
		return vmm.ErrNotRunning
	}
	m.limiting.Lock()
	defer m.limiting.Unlock()
	old := m.limits
	if m.group != nil {
		if err := m.group.Limit(ctx, l); err != nil {
			return err
		}
	} else if grouped(l) {
		return fmt.Errorf("it has no cgroup, the daemon's log says why: restart it: %w",
			vmm.ErrUnsupported)
	}
	if !m.limited || old.IOMax != l.IOMax {
		if err := m.throttle(ctx, l.IOMax); err != nil {
			if m.group != nil && m.limited {
				err = errors.Join(err, m.group.Limit(ctx, &old))
			}
			return err
		}
	}
	m.limits, m.limited = *l, true
	return nil
}

// limitFirst puts the limits of a QEMU in force that has just been started in its group.
func (m *Machine) limitFirst(ctx context.Context, l *vmm.Limits) error {
	m.limits, m.limited = *l, true
	m.limits.IOMax = vmm.IOMax{}
	return m.Limit(ctx, l)
}

// throttleGroup is the name of the group of throttling that all disks of a VM are in.
const throttleGroup = "limits"

// throttled is what QEMU says of a disk's throttling: an entry of query-block (BlockInfo of
// qapi/block-core.json).
type throttled struct {
	Device   string `json:"qdev"`
	Inserted *struct {
		rates
	} `json:"inserted"`
}

// rates are members of BlockDeviceInfo and of BlockIOThrottle.
type rates struct {
	ReadBytes  int64 `json:"bps_rd"`
	WriteBytes int64 `json:"bps_wr"`
	ReadOps    int64 `json:"iops_rd"`
	WriteOps   int64 `json:"iops_wr"`
}

// throttle limits what the guest does with all of its disks together. QEMU counts at the device, so
// that snapshots, which change what is below, change nothing.
func (m *Machine) throttle(ctx context.Context, l vmm.IOMax) error {
	var disks []throttled
	if err := m.call(ctx, "query-block", nil, &disks); err != nil {
		return err
	}
	want := rates(l)
	for _, d := range disks {
		if d.Inserted == nil || d.Device == "" || d.Inserted.rates == want {
			continue
		}
		args := struct {
			ID    string `json:"id"`
			Group string `json:"group"`
			Bytes int64  `json:"bps"`
			Ops   int64  `json:"iops"`
			rates
		}{ID: d.Device, Group: throttleGroup, rates: want}
		if err := m.call(ctx, "block_set_io_throttle", args, nil); err != nil {
			return fmt.Errorf("QEMU does not limit its disks: %w", err)
		}
	}
	return nil
}

// Balloon implements vmm.Machine.
func (m *Machine) Balloon(ctx context.Context, bytes int64) error {
	if bytes == 0 {
		bytes = math.MaxInt64 // QEMU takes the guest's memory for more than that
	}
	err := m.call(ctx, "balloon", map[string]int64{"value": bytes}, nil)
	var refused *qmpError
	if errors.As(err, &refused) && refused.Class == "DeviceNotActive" {
		return fmt.Errorf("%w: the machine has no balloon", vmm.ErrUnsupported)
	}
	return err
}

// widen lets the files of a running VM grow as far as its disks and that many snapshots need it.
// size is the new length of the work disk, 0 for the one before.
func (m *Machine) widen(snapshots int, size int64) error {
	m.limiting.Lock()
	defer m.limiting.Unlock()
	spec := &m.bounded
	spec.Snapshots = max(spec.Snapshots, min(snapshots, maxSnapshots))
	for i := range spec.Disks {
		if filepath.Base(spec.Disks[i].Path) == vmm.DiskWork {
			spec.Disks[i].Size = max(spec.Disks[i].Size, size)
		}
	}
	return host.Widen(m.proc.PID, spec.UID, spec.GID, largestFile(spec, spec.Snapshots))
}
