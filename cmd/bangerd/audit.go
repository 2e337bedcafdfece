package main

import (
	"os"
	"path/filepath"

	"banger/fs"
	"banger/internal/audit"
	"banger/vmm"
)

// openAudit opens the audit until the service closes.
func (s *service) openAudit() (err error) {
	s.audit, err = audit.Open(audit.Options{
		Path: filepath.Join(s.state, "audit"), Log: s.log, User: s.subuids.User,
	})
	if err == nil {
		s.onClose("close the audit", s.audit.Close)
	}
	return err
}

// acted adds a line to the audit about what the daemon has done with a VM by itself.
func (s *service) acted(v *vmm.VM, act vmm.Act, err error) {
	snap := v.Snapshot()
	s.audit.AddOwn(snap.Owner.UID, audit.Line{PID: uint32(os.Getpid()),
		Path: "vms/" + snap.Name, What: string(act), Result: fs.Result(err)})
}
