package collector

import (
	"context"

	"banger/vmm"
)

// diskStats fills in what the VM's disks take on the host; a disk that is not there is left out.
func (e *entry) diskStats(s *vmm.Snapshot, st *Stats) {
	// An overlay is made before the machine runs, or not at all in that run.
	if running := s.State == vmm.Running; !running || e.bare.Load() != s.Run {
		st.OverlayBytes = allocated(s.Dir, vmm.DiskOverlay)
		if running && st.OverlayBytes == nil {
			e.bare.Store(s.Run)
		}
	}
	if s.Config.Disk > 0 {
		st.WorkBytes = allocated(s.Dir, vmm.DiskWork, vmm.DiskRaw)
	}
}

// blockStats fills in what the VMM counts of the guest's disks; nothing for a VM that does not run, has none, or whose VMM does not answer.
func (c *Collector) blockStats(ctx context.Context, s *vmm.Snapshot, st *Stats) {
	if !s.State.Alive() || st.OverlayBytes == nil && st.WorkBytes == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, blockTimeout)
	defer cancel()
	b, err := s.Machine.BlockStats(ctx)
	if err != nil {
		c.log.Debug("no block figures", "vm", s.Name, "err", err)
		return
	}
	st.DiskReadBytes, st.DiskWriteBytes = &b.ReadBytes, &b.WriteBytes
	st.DiskReadOps, st.DiskWriteOps = &b.ReadOps, &b.WriteOps
}

// allocated gives the bytes that the first of the files that is there occupies, nil if none is.
func allocated(dir string, names ...string) *int64 {
	for _, name := range names {
		if n := vmm.DiskBytes(vmm.DiskPath(dir, name)); n >= 0 {
			return ptr(n)
		}
	}
	return nil
}
