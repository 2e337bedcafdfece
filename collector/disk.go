package collector

import (
	"context"

	"banger/vmm"
)

var _ = addSource(source{bound: blockTimeout, idle: hasNoDisks, fill: fillDisks, metrics: []Metric{
	allocation("overlay", func(s *Stats) *int64 { return s.OverlayBytes }),
	allocation("work", func(s *Stats) *int64 { return s.WorkBytes }),
	counter("banger_vm_disk_read_bytes_total", "Bytes that the guest read from its disks.", 1,
		func(s *Stats) *uint64 { return s.DiskReadBytes }),
	counter("banger_vm_disk_written_bytes_total", "Bytes that the guest wrote to its disks.", 1,
		func(s *Stats) *uint64 { return s.DiskWriteBytes }),
	counter("banger_vm_disk_reads_completed_total", "Reads of the guest's disks that ended.", 1,
		func(s *Stats) *uint64 { return s.DiskReadOps }),
	counter("banger_vm_disk_writes_completed_total", "Writes to the guest's disks that ended.", 1,
		func(s *Stats) *uint64 { return s.DiskWriteOps }),
}})

// allocation is the metric of a disk's space on the host, also of a stopped VM.
func allocation(device string, get func(*Stats) *int64) Metric {
	m := figure("banger_vm_disk_allocated_bytes", "What the VM's disk takes on the host.", 1, get)
	m.Device = device
	return m
}

func hasNoDisks(t *task) bool {
	return t.s.Config.Disk == 0 && running(t.s) && t.e.bare.Load() == t.s.Run
}

// fillDisks sets what the VM's disks occupy on the host, and what the VMM counts of their use.
func fillDisks(ctx context.Context, t *task, st *Stats) {
	s := t.s
	// An overlay is made before the machine runs, or not at all in that run.
	if !running(s) || t.e.bare.Load() != s.Run {
		st.OverlayBytes = allocated(s.Dir, vmm.DiskOverlay)
		if running(s) && st.OverlayBytes == nil {
			t.e.bare.Store(s.Run)
		}
	}
	if s.Config.Disk > 0 {
		st.WorkBytes = allocated(s.Dir, vmm.DiskWork, vmm.DiskRaw)
	}
	if s.Machine == nil || !s.State.Alive() || st.OverlayBytes == nil && st.WorkBytes == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, blockTimeout)
	defer cancel()
	b, err := s.Machine.BlockStats(ctx)
	if err != nil {
		t.c.log.Debug("no block figures", "vm", s.Name, "err", err)
		return
	}
	st.DiskReadBytes, st.DiskWriteBytes = &b.ReadBytes, &b.WriteBytes
	st.DiskReadOps, st.DiskWriteOps = &b.ReadOps, &b.WriteOps
}

// allocated returns the bytes that the first existing file occupies, nil if there is none.
func allocated(dir string, names ...string) *int64 {
	for _, name := range names {
		if n := vmm.DiskBytes(vmm.DiskPath(dir, name)); n >= 0 {
			return ptr(n)
		}
	}
	return nil
}
