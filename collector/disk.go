package collector

import (
	"path/filepath"

	"banger/vmm"

	"golang.org/x/sys/unix"
)

// diskStats fills in what the VM's disks take on the host; a disk that is not there is left out.
func diskStats(s *vmm.Snapshot, st *Stats) {
	st.OverlayBytes = allocated(filepath.Join(s.Dir, vmm.DiskOverlay))
	st.WorkBytes = allocated(filepath.Join(s.Dir, vmm.DiskWork))
}

// allocated gives the bytes that a file occupies (st_blocks is in units of 512 whatever the file system, stat(2)), nil if there is none.
func allocated(path string) *int64 {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	return ptr(st.Blocks * 512)
}
