package vmm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// fullSweeps is after how many sweeps VMs that found no space may resume: every 3 s.
	fullSweeps = 3
	// roomToResume is how many bytes must be free then. With less the VM would stop again at once.
	roomToResume = 64 << 20
)

// full reports whether the VMM stopped the CPUs because a disk found no space on the host.
func (v *VM) full() bool {
	machine := v.Snapshot().Machine
	return machine != nil && machine.Full()
}

// fullError is the error of a VM that found no space on the host for a disk.
func (v *VM) fullError(disk string) error {
	return fmt.Errorf("paused: no space left on the host for its disk %s: "+
		"free %d MiB where %s is and it goes on by itself, or write resume to its state",
		disk, roomToResume>>20, v.Snapshot().Dir)
}

// resumeFull resumes a VM that found no space on the host if there is some again.
func (v *VM) resumeFull(s *Snapshot) {
	if s.State != Paused || s.Machine == nil || !s.Machine.Full() {
		return
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.Dir, &st); err != nil || int64(st.Bavail)*st.Bsize < roomToResume {
		return
	}
	if v.try(Resume) {
		v.logf("there is space on the host again")
	}
}
