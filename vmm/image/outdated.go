package image

import (
	"errors"
	"io/fs"

	"banger/internal/host"
	"banger/vmm/image/boot"
)

// checkBuiltin says what to type where the built-in image is missing or of another version.
func (s *Set) checkBuiltin() {
	const cure = "type: banger image builtin"
	m, err := readManifest(s.path(Builtin))
	if errors.Is(err, fs.ErrNotExist) {
		s.o.Log.Warn("there is no image that VMs boot, "+cure, "dir", s.o.Dir)
		return
	}
	if err != nil {
		s.o.Log.Error("cannot read the built-in image, "+cure, "err", err)
		return
	}
	newest, err := s.o.Host.agentFile()
	var sum string
	if err == nil {
		sum, err = host.FileSHA256(newest)
	}
	if err != nil {
		s.o.Log.Warn("cannot compare the agent of the built-in image", "err", err)
		return
	}
	has := m.Agent
	if has == "" { // of an earlier version
		old, err := boot.Agent(s.path(Builtin, m.Initrd))
		if err != nil {
			return // it may be anything that boots
		}
		has = agentDigest(old)
	}
	if has != "sha256:"+sum {
		s.o.Log.Warn("the built-in image has the agent of another version, " + cure)
		s.tell(Builtin, "outdated")
	}
}
