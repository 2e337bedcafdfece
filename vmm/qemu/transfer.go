package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"banger/internal/host"
	"banger/vmm"
)

// ExportDisk implements vmm.Driver.
func (d *Driver) ExportDisk(
	ctx context.Context, spec *vmm.Spec, disk vmm.Disk,
) (*os.File, error) {
	t, err := newTools(spec)
	if err != nil {
		return nil, err
	}
	disk = actual(t.spec.Disks[slices.Index(spec.Disks, disk)]) // with its absolute paths
	path := disk.Path + vmm.ExportSuffix
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	defer os.Remove(path) // its content lives as long as it is open
	args := []string{"convert", "-q", "-c", "-O", qcow2, "-o", "compression_type=zstd"}
	if disk.Base != "" {
		base := "json:" + string(mustJSON(baseNode(disk, "", selfFD(toolBase))))
		args = append(args, "-B", base, "-F", disk.BaseFormat)
	}
	args = append(args, toolImage(disk), toolPath(path))
	if err := t.qemuImg(ctx, disk.Base, args...); err != nil {
		return nil, fmt.Errorf("cannot copy the disk %s: %w", filepath.Base(disk.Path), err)
	}
	if disk.Base != "" {
		// The base's path reveals something of this host and is of no use on another.
		if err := t.rebase(ctx, path, "-b", ""); err != nil {
			return nil, err
		}
	}
	return host.OpenRegular(path, os.O_RDONLY, t.spec.UID)
}

// rebase changes the base in a disk's header, and nothing else.
func (t *tools) rebase(ctx context.Context, path string, base ...string) error {
	args := append([]string{"rebase", "-q", "-u", "-f", qcow2}, base...)
	return t.qemuImg(ctx, "", append(args, toolPath(path))...)
}

// ImportDisks implements vmm.Driver.
func (d *Driver) ImportDisks(ctx context.Context, spec *vmm.Spec) error {
	return eachDisk(ctx, spec, (*tools).importDisk)
}

// importDisk checks a disk, if it exists, and writes its base into its header.
func (t *tools) importDisk(ctx context.Context, disk vmm.Disk) error {
	name := filepath.Base(disk.Path)
	switch err := checkHead(disk.Path, t.spec.UID); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("the disk %s: %v: %w", name, err, vmm.ErrInvalid)
	}
	if err := t.qemuImg(ctx, "", "check", "-q", toolImage(alone(disk))); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return fmt.Errorf("the disk %s is damaged: %v: %w", name, err, vmm.ErrInvalid)
	}
	if disk.Base == "" {
		return nil
	}
	if err := t.rebase(ctx, disk.Path, "-b", disk.Base, "-F", disk.BaseFormat); err != nil {
		return fmt.Errorf("cannot make %s a disk over %s: %w", name, disk.Base, err)
	}
	return nil
}

// maxImported bounds the length of an imported disk, bytes.
const maxImported = 1 << 44

// checkHead refuses an image that is more than data: one over another file, with its data in
// another, encrypted, with snapshots, or with features that ExportDisk does not use
// (docs/interop/qcow2.txt of QEMU).
func checkHead(path string, owner int) error {
	f, err := host.OpenRegular(path, os.O_RDONLY, owner)
	if err != nil {
		return err
	}
	defer f.Close()
	head, err := host.ReadQcow2(f)
	if err != nil {
		return err
	}
	switch {
	case head.Version != 3:
		return errors.New("it is not a qcow2 image of version 3")
	case head.BackingOffset != 0 || head.BackingLength != 0:
		return errors.New("it is over another file")
	case head.Encryption != 0:
		return errors.New("it is encrypted")
	case head.Snapshots != 0:
		return errors.New("it has snapshots")
	case head.Incompatible&^host.Qcow2CompressionType != 0:
		return errors.New("it has features that no exported disk has")
	case head.Size > maxImported:
		return errors.New("it is too long")
	}
	return nil
}
