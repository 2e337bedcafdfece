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

// logf adds a line to the VM's `log`, if the VM has a directory.
func (v *VM) logf(format string, args ...any) {
	f, err := v.openLog()
	if err != nil {
		return
	}
	defer f.Close()
	now := time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
	fmt.Fprintf(ownLog{f}, now+" banger: "+format+"\n", args...)
}

// ownLog adds lines of banger's own to a VM's `log`. A text of a guest, its agent or its VMM in
// them can neither begin another line nor bring control characters to a terminal.
type ownLog struct{ f *os.File }

// Write appends one line.
func (l ownLog) Write(line []byte) (int, error) {
	text := printable.Line(strings.TrimSuffix(string(line), "\n"))
	if _, err := io.WriteString(l.f, text+"\n"); err != nil {
		return 0, err
	}
	return len(line), nil
}

func (v *VM) openLog() (*os.File, error) {
	path := filepath.Join(v.Snapshot().Dir, LogFile)
	return host.OpenOrCreate(path, os.O_WRONLY|os.O_APPEND, host.AnyOwner)
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
