package vmm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// fullLook is at which sweep the daemon looks whether VMs that found no space on the host may go on: every 3 s.
	fullLook = 3
	// roomToGoOn is how many bytes must be free before they do: with less they would stop again at once.
	roomToGoOn = 64 << 20
)

// full reports whether the VMM stopped the CPUs because a disk found no space on the host.
func (v *VM) full() bool {
	f, ok := v.Snapshot().Machine.(Fuller)
	return ok && f.Full()
}

// fullError says what a VM that found no space on the host needs.
func (v *VM) fullError(disk string) error {
	return fmt.Errorf("paused: no space left on the host for its disk %s: free %d MiB where %s is and it goes on by itself, or write resume to its state",
		disk, roomToGoOn>>20, v.Snapshot().Dir)
}

// goOn lets a VM that found no space on the host go on if there is some again.
func (v *VM) goOn(s *Snapshot) {
	f, ok := s.Machine.(Fuller)
	if s.State != Paused || !ok || !f.Full() {
		return
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.Dir, &st); err != nil || int64(st.Bavail)*st.Bsize < roomToGoOn {
		return
	}
	if v.try(Resume) {
		v.logf("there is space on the host again")
	}
}
