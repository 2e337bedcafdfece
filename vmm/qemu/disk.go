package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"banger/vmm"
)

// makeDisks makes the overlays that are not there yet. It runs qemu-img as the VM's user, whose directory they are in; a crash
// leaves none or a whole one.
func makeDisks(ctx context.Context, spec *vmm.Spec, cred *syscall.Credential) error {
	for _, d := range spec.Disks {
		if d.Base == "" {
			continue
		}
		if _, err := os.Lstat(d.Path); !errors.Is(err, os.ErrNotExist) {
			if err != nil {
				return err
			}
			continue
		}
		tmp := d.Path + ".new"
		if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := qemuImg(ctx, cred, "create", "-q", "-f", d.Format, "-b", d.Base, "-F", d.BaseFormat, tmp); err != nil {
			return fmt.Errorf("cannot make a disk over %s: %w", d.Base, err)
		}
		if err := os.Rename(tmp, d.Path); err != nil {
			return err
		}
	}
	return nil
}

// qemuImg runs qemu-img(1) to its end as cred, the daemon's own user if that is nil; its error holds what it said.
func qemuImg(ctx context.Context, cred *syscall.Credential, args ...string) error {
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	if cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("no qemu-img (install qemu-utils): %w", vmm.ErrUnsupported)
	case err != nil:
		return fmt.Errorf("qemu-img: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}
