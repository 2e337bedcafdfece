package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"banger/internal/host"
	"banger/vmm"
)

const (
	qcow2  = "qcow2"
	sector = 512

	// maxFormat bounds the file system of a new disk, bytes; the agent grows it to the disk's
	// length. It bounds what mke2fs writes for disks of terabytes.
	maxFormat = 4 << 30
	// minFormat is the smallest disk with a file system, bytes.
	minFormat = 1 << 20
)

// makeFS are the options of mke2fs(8). They fix the features of ext4, for the host's mke2fs.conf
// may choose some that the guest's kernel is too old for.
var makeFS = []string{"-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0",
	"-L", "work", "-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit," +
		"flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"}

// MakeDisks implements vmm.Driver. A crash leaves each disk as it was or whole.
func (d *Driver) MakeDisks(ctx context.Context, spec *vmm.Spec) error {
	return eachDisk(ctx, spec, (*tools).ensure)
}

// inSectors rounds a size in bytes up.
func inSectors(size int64) int64 { return (size + sector - 1) / sector * sector }

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

// ensure makes a disk that does not exist, and grows one that is too small.
func (t *tools) ensure(ctx context.Context, d vmm.Disk) error {
	size := inSectors(d.Size)
	length, err := virtualSize(d, t.spec.UID)
	raw := rawTwin(d)
	if err == nil && raw.Path != "" { // a crash ended the conversion just before this
		err = os.Remove(raw.Path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return t.create(ctx, d, raw, size)
	case err != nil:
		return fmt.Errorf("cannot examine the disk %s: %w", filepath.Base(d.Path), err)
	case length >= size:
		return nil
	}
	if err := t.qemuImg(ctx, d.Base, "resize", "-q", toolImage(d), decimal(size)); err != nil {
		return fmt.Errorf("cannot grow the disk %s: %w", filepath.Base(d.Path), err)
	}
	return nil
}

// create makes a disk: over its base, of the raw one of an earlier banger, or with an empty file
// system.
func (t *tools) create(ctx context.Context, d, raw vmm.Disk, size int64) error {
	fresh, from := d.Path+vmm.NewSuffix, d.Path+vmm.RawSuffix
	for _, path := range []string{fresh, from} { // of an interrupted start
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	defer os.Remove(from)
	switch {
	case d.Base != "":
		if err := t.overlay(ctx, d, fresh, size); err != nil {
			return fmt.Errorf("cannot make a disk over %s: %w", d.Base, err)
		}
	case raw.Path != "" && vmm.DiskBytes(raw.Path) > 0:
		return t.convert(ctx, d, raw, fresh)
	default:
		if err := t.format(ctx, from, size); err != nil {
			return fmt.Errorf("cannot make a file system for the disk %s: %w",
				filepath.Base(d.Path), err)
		}
		if err := t.formatted(ctx, d, from, fresh, size); err != nil {
			return fmt.Errorf("cannot make the disk %s: %w", filepath.Base(d.Path), err)
		}
	}
	return t.settle(fresh, d.Path)
}

// overlay makes a disk over d's base, at least as long as that.
func (t *tools) overlay(ctx context.Context, d vmm.Disk, fresh string, size int64) error {
	length, err := baseSize(d)
	if err != nil {
		return err
	}
	// The path in the header is for people: -u opens nothing.
	return t.qemuImg(ctx, "", "create", "-q", "-u", "-f", d.Format, "-b", d.Base,
		"-F", d.BaseFormat, toolPath(fresh), decimal(max(size, length)))
}

// formatted makes a disk with the content of the raw file from, or a blank one if that is not
// there.
func (t *tools) formatted(ctx context.Context, d vmm.Disk, from, fresh string, size int64) error {
	target := toolPath(fresh)
	args := []string{"create", "-q", "-f", d.Format, target, decimal(size)}
	if _, err := os.Lstat(from); err == nil {
		args = []string{"convert", "-q", "-f", "raw", "-O", d.Format, toolPath(from), target}
	}
	if err := t.qemuImg(ctx, "", args...); err != nil || size <= maxFormat {
		return err
	}
	image := toolImage(vmm.Disk{Path: fresh, Format: d.Format})
	return t.qemuImg(ctx, "", "resize", "-q", image, decimal(size))
}

// settle renames a finished file, once all of it is on the disk.
func (t *tools) settle(from, to string) error {
	f, err := host.OpenRegular(from, os.O_RDONLY, t.spec.UID)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// format makes the file system of a new disk in the file path, at most maxFormat long. A disk too
// small for one stays blank, and so does every disk on a host without mke2fs.
func (t *tools) format(ctx context.Context, path string, size int64) error {
	if size < minFormat {
		t.logf("a disk of %d bytes is too small for a file system: it is left blank", size)
		return nil
	}
	program := host.FindProgram("mke2fs")
	if program == "" {
		t.logf("there is no mke2fs here (install e2fsprogs): the disk is left blank")
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	err = errors.Join(f.Chown(t.spec.UID, t.spec.GID), f.Truncate(min(size, maxFormat)))
	if err != nil {
		return err
	}
	args := slices.Clone(makeFS)
	if size >= 1<<30 {
		args = append(args, "-J", "size=32") // the host holds the journal meanwhile
	}
	_, err = t.run(ctx, "", program, append(args, toolPath(path))...)
	return err
}

// convert makes a disk of the raw one of an earlier banger. The raw one stays in use where the host
// has no room for both.
func (t *tools) convert(ctx context.Context, d, raw vmm.Disk, fresh string) error {
	err := t.qemuImg(ctx, "", "convert", "-q", "-f", "raw", "-O", d.Format,
		toolPath(raw.Path), toolPath(fresh))
	if err != nil {
		os.Remove(fresh)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		t.logf("the disk stays %s, without snapshots: it cannot be converted: %v",
			filepath.Base(raw.Path), err)
		return t.ensure(ctx, raw)
	}
	if err := t.settle(fresh, d.Path); err != nil {
		return err
	}
	return t.ensure(ctx, d) // which removes the raw one
}

// rawTwin returns the raw disk of an earlier banger in place of d, without a path if there is none.
func rawTwin(d vmm.Disk) vmm.Disk {
	if filepath.Base(d.Path) == vmm.DiskWork {
		raw := d
		raw.Path, raw.Format = filepath.Join(filepath.Dir(d.Path), vmm.DiskRaw), "raw"
		if _, err := os.Lstat(raw.Path); err == nil {
			return raw
		}
	}
	return vmm.Disk{}
}

// actual returns the disk in use for d: the raw one where that could not be converted.
func actual(d vmm.Disk) vmm.Disk {
	if _, err := os.Lstat(d.Path); errors.Is(err, fs.ErrNotExist) {
		if raw := rawTwin(d); raw.Path != "" {
			return raw
		}
	}
	return d
}

// virtualSize returns the length of a disk as the guest sees it, in bytes. Its file belongs to
// owner.
func virtualSize(d vmm.Disk, owner int) (int64, error) {
	f, err := host.OpenRegular(d.Path, os.O_RDONLY, owner)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return host.DiskSize(f, d.Format)
}

// baseSize is virtualSize for the base of d.
func baseSize(d vmm.Disk) (int64, error) {
	f, err := os.Open(d.Base)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return host.DiskSize(f, d.BaseFormat)
}
