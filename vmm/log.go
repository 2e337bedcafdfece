package vmm

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"banger/internal/host"
)

// logf adds a line to the VM's `log`, if it has been started before.
func (v *VM) logf(format string, args ...any) {
	f, err := v.openLog()
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%s banger: %s\n", time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), fmt.Sprintf(format, args...))
}

func (v *VM) openLog() (*os.File, error) {
	return host.OpenOrCreate(filepath.Join(v.Snapshot().Dir, LogFile), os.O_WRONLY|os.O_APPEND, host.AnyOwner)
}

func (v *VM) trimLog(s *Snapshot) {
	if s.Machine == nil {
		return
	}
	f, err := host.OpenRegular(filepath.Join(s.Dir, LogFile), os.O_RDWR, host.AnyOwner)
	if err != nil {
		return
	}
	defer f.Close()
	if err := TrimHead(f, TailMax); err != nil {
		v.m.o.Log.Warn("cannot trim a VM's log", "vm", s.Name, "err", err)
	}
}
