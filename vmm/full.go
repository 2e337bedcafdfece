package vmm

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// fullLook is at which sweep the daemon looks whether VMs that found no space on the host may go on: every 3 s.
	fullLook = 3
	// roomToGoOn is how many bytes must be free before they do: with less they would stop again at once.
	roomToGoOn = 64 << 20
)

// halted records that the VMM stopped the CPUs by itself.
func (v *VM) halted(why error) {
	for {
		t, err := v.beginWork(v.m.ctx, Pause, func(state State) (func(context.Context) error, error) {
			p, ok := v.Snapshot().Machine.(interface{ Paused() bool })
			if state != Running || !ok || !p.Paused() {
				return nil, nil // it ended, or somebody let it go on
			}
			return func(context.Context) error {
				return v.enter(Paused, func(s *Snapshot) { s.Error = why.Error() })
			}, nil
		})
		if t != nil {
			<-t.done
			if err = t.err; err == nil {
				v.emit(EventError, why.Error())
			}
		}
		if err == nil || v.m.ctx.Err() != nil {
			return
		}
		busy := v.transition()
		if !errors.Is(err, ErrBusy) || busy == nil {
			v.m.o.Log.Error("cannot record that a VM was paused", "vm", v.Snapshot().Name, "err", err)
			return
		}
		<-busy.done // it has just started
	}
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
	v.logf("there is space on the host again")
	if err := v.Accept(v.m.ctx, Resume); err != nil && !errors.Is(err, ErrBusy) {
		v.m.o.Log.Error("cannot resume a VM that found no space", "vm", s.Name, "err", err)
	}
}
