package vmm

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/host"
	"banger/internal/printable"
)

// logf adds a line to the VM's `log`, if it has been started before.
func (v *VM) logf(format string, args ...any) {
	f, err := v.openLog()
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(ownLog{f}, "%s banger: %s\n", time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), fmt.Sprintf(format, args...))
}

// ownLog adds lines of banger's own to a VM's `log`. What they quote of a guest, its agent or its
// VMM can neither begin another line nor reach a terminal as a control character.
type ownLog struct{ f *os.File }

// Write takes one line.
func (l ownLog) Write(line []byte) (int, error) {
	if _, err := io.WriteString(l.f, printable.Line(strings.TrimSuffix(string(line), "\n"))+"\n"); err != nil {
		return 0, err
	}
	return len(line), nil
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
	if err := host.TrimHead(f, host.TailMax); err != nil {
		v.m.o.Log.Warn("cannot trim a VM's log", "vm", s.Name, "err", err)
	}
}
