package image

import (
	"path/filepath"

	"banger/internal/host"
	"banger/vmm"
	"banger/vmm/image/boot"
)

// recipeRoot is part of the key of each build with a root disk. It changes whenever the same layers
// make another image.
const recipeRoot = "1"

// rootCmdline is added to the built-in command line for a machine with a root disk. The agent finds
// the interface by the kernel's own name for it.
const rootCmdline = " net.ifnames=0"

// The least memory of an image that runs one program, and of one whose init starts many.
const (
	programMemory = 128 << 20
	initMemory    = 256 << 20
)

// compose completes the built image in dir with the current agent, and where it needs it with the
// kernel, of the built-in image.
func (s *Set) compose(dir string, m *manifest) error {
	base, free, err := s.holdBuiltin(s.ctx)
	if err != nil {
		return err
	}
	defer free()
	m.Base, m.Cmdline, m.Initrd = base.Digest, base.Cmdline+rootCmdline, boot.InitrdName
	if !m.OwnKernel {
		m.Kernel = base.Kernel
		from := s.path(Builtin, base.Kernel)
		if err := host.LinkOrCopy(from, filepath.Join(dir, m.Kernel)); err != nil {
			return err
		}
	}
	to, extra := filepath.Join(dir, boot.InitrdName), filepath.Join(dir, m.Extra)
	if err := boot.Join(to, s.path(Builtin, base.Initrd), extra); err != nil {
		return err
	}
	m.Size = 0
	for _, name := range m.files() {
		m.Size += allocated(filepath.Join(dir, name))
	}
	return nil
}

// recompose replaces the agent and the kernel in images that were composed with another built-in
// image.
func (s *Set) recompose() {
	base, err := readManifest(s.path(Builtin))
	if err != nil {
		return // builds fail for the same reason, and say so
	}
	for _, i := range s.Infos() {
		e := s.item(i.Name)
		if e == nil {
			continue
		}
		if err := s.recomposeOne(e, base.Digest); err != nil {
			s.o.Log.Error("cannot give an image this version's agent", "image", i.Name, "err", err)
		}
	}
}

// recomposeOne composes an image anew unless it is not ready, or composed with the base of that
// digest.
func (s *Set) recomposeOne(e *item, base string) error {
	select {
	case e.own <- struct{}{}:
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
	defer func() { <-e.own }()
	s.mu.Lock()
	removed := e.removed
	s.mu.Unlock()
	if removed || s.info(e).Status != vmm.ImageReady {
		return nil
	}
	m, err := readManifest(s.path(e.name))
	if err != nil || m.Extra == "" || m.Base == base {
		return err
	}
	return s.install(e, m, s.path(e.name))
}

// allocated returns the bytes that a file occupies on the host, 0 if that is unknown.
func allocated(name string) int64 {
	b, err := measure(name)
	if err != nil {
		return 0
	}
	return b.bytes
}
