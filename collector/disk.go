package collector

import (
	"context"
	"path/filepath"

	"banger/vmm"

	"golang.org/x/sys/unix"
)

// diskStats fills in what the VM's disks take on the host; a disk that is not there is left out.
func (e *entry) diskStats(s *vmm.Snapshot, st *Stats) {
	// An overlay is made before the machine runs, or not at all in that run.
	if running := s.State == vmm.Running; !running || e.bare.Load() != s.Run {
		st.OverlayBytes = allocated(filepath.Join(s.Dir, vmm.DiskOverlay))
		if running && st.OverlayBytes == nil {
			e.bare.Store(s.Run)
		}
	}
	if s.Config.Disk > 0 {
		st.WorkBytes = allocated(filepath.Join(s.Dir, vmm.DiskWork))
	}
}

// blockStats fills in what the VMM counts of the guest's disks; nothing for a VM that does not run, has none, or whose VMM does not answer.
func (c *Collector) blockStats(ctx context.Context, s *vmm.Snapshot, st *Stats) {
	counts, ok := s.Machine.(vmm.BlockStatser)
	if !ok || !s.State.Alive() || st.OverlayBytes == nil && st.WorkBytes == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, blockTimeout)
	defer cancel()
	b, err := counts.BlockStats(ctx)
	if err != nil {
		c.log.Debug("no block figures", "vm", s.Name, "err", err)
		return
	}
	st.DiskReadBytes, st.DiskWriteBytes = &b.ReadBytes, &b.WriteBytes
	st.DiskReadOps, st.DiskWriteOps = &b.ReadOps, &b.WriteOps
}

// allocated gives the bytes that a file occupies (st_blocks is in units of 512 whatever the file system, stat(2)), nil if there is none.
func allocated(path string) *int64 {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	return ptr(st.Blocks * 512)
}
