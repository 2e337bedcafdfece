package image

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"banger/internal/host"
)

// Host says where the parts of the built-in image are. The zero value stands for the host on which
// banger was installed.
type Host struct {
	// Agent is the path of banger-agent. If it is empty, it is beside this program or in
	// ../lib/banger from there.
	Agent string
	// Busybox is the path of a static busybox. If it is empty, it is the first static one of
	// busyboxes.
	Busybox string
	// Root is the directory in which the host's kernel is looked for; "/" if empty.
	Root string
	// Packages is the directory of fetched kernel packages; that of the layers if empty.
	Packages string
	// Kept makes a package that is there serve, without a question to apt.
	Kept bool
}

// busyboxes are the paths of busybox: Debian's and Arch's, Fedora's and NixOS's.
var busyboxes = []string{
	"/bin/busybox", "/usr/bin/busybox", "/usr/sbin/busybox", "/run/current-system/sw/bin/busybox",
}

const (
	agentName   = "banger-agent"
	busyboxCure = "install a static busybox: busybox-static of Debian and Ubuntu, " +
		"busybox of Fedora and Arch, pkgsStatic.busybox of Nix"
)

// agentFile returns the path of the program that becomes the guest's init.
func (h *Host) agentFile() (string, error) {
	if h.Agent != "" {
		return h.Agent, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if target, err := filepath.EvalSymlinks(self); err == nil {
		self = target
	}
	dir := filepath.Dir(self)
	names := []string{
		filepath.Join(dir, agentName), filepath.Join(dir, "../lib/banger", agentName),
	}
	for _, name := range names {
		if _, err := os.Stat(name); err == nil {
			return name, nil
		}
	}
	return "", fmt.Errorf("there is neither %s nor %s: install banger anew", names[0], names[1])
}

// agent returns the program that becomes the guest's init.
func (h *Host) agent() ([]byte, error) {
	name, err := h.agentFile()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(name)
	if err == nil {
		err = checkStatic(b)
	}
	if err != nil {
		return nil, fmt.Errorf("the agent %s: %w", name, err)
	}
	return b, nil
}

// busybox returns a static busybox and its path.
func (h *Host) busybox() (b []byte, path string, err error) {
	names := busyboxes
	if h.Busybox != "" {
		names = []string{h.Busybox}
	} else if found, err := exec.LookPath("busybox"); err == nil {
		names = append(names[:len(names):len(names)], found)
	}
	b, path, err = firstStatic(names)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, "", fmt.Errorf("there is no %s: %s", names[0], busyboxCure)
	case errors.Is(err, errDynamic):
		return nil, "", fmt.Errorf("%s needs libraries, which no guest has: %s", path, busyboxCure)
	case err != nil:
		return nil, "", err
	}
	return b, path, nil
}

// errDynamic is the error of a program that needs shared libraries.
var errDynamic = errors.New("it is not static")

// firstStatic reads the first of some programs that is static. The error is that of the last one
// that is there, or else that of the last.
func firstStatic(names []string) (b []byte, name string, err error) {
	for _, next := range names {
		program, nextErr := os.ReadFile(next)
		if nextErr == nil {
			nextErr = checkStatic(program)
		}
		if nextErr == nil {
			return program, next, nil
		}
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			name, err = next, nextErr
		}
	}
	return nil, name, err
}

// checkStatic refuses a program that needs libraries, or another processor.
func checkStatic(program []byte) error {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("it is no program: %w", err)
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("it is a program for %s", f.Machine)
	}
	if !host.IsStatic(f) {
		return errDynamic
	}
	return nil
}

// root returns the directory of the host's kernel.
func (h *Host) root() string {
	if h.Root == "" {
		return "/"
	}
	return h.Root
}
