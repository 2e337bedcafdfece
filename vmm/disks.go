package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/host"
)

// disksOf returns the disks of a VM with these settings.
func disksOf(dir string, c *Config, image *Image) []Disk {
	var disks []Disk
	if image.Root != "" {
		disks = append(disks, Disk{Path: DiskPath(dir, DiskOverlay), Format: "qcow2",
			Base: image.Root, BaseFormat: image.RootFormat})
	}
	if c.Disk > 0 {
		disks = append(disks, Disk{Path: DiskPath(dir, DiskWork), Format: "qcow2", Size: c.Disk})
	}
	return disks
}

// diskSpec returns the Spec for work on the disks, and the driver.
func (v *VM) diskSpec() (*Spec, Driver, error) {
	s := v.Snapshot()
	image, err := v.m.o.Images.Image(s.Config.Image)
	if err != nil {
		return nil, nil, fmt.Errorf("image %q: %w", s.Config.Image, err)
	}
	if err := s.checkBase(&image); err != nil && !s.State.Alive() {
		return nil, nil, err
	}
	spec := v.spec(image)
	if !s.State.Alive() {
		if err := ownDisks(spec); err != nil {
			return nil, nil, err
		}
	}
	return spec, v.m.driver(s.Config.VMM), nil
}

// hasOverlay reports whether the VM has a system disk.
func (s *Snapshot) hasOverlay() bool {
	_, err := os.Lstat(DiskPath(s.Dir, DiskOverlay))
	return err == nil
}

// checkBase refuses an image that is not that of the VM's last start. The overlay of one image over
// another is a broken disk, and a maker of images could get into the VM of another user.
func (s *Snapshot) checkBase(image *Image) error {
	switch {
	case s.Base == "", s.Base == image.Digest, image.Name == BuiltinImage:
		return nil
	case s.hasOverlay():
		return fmt.Errorf("its system disk is over an image of digest %s, and %s is now another: "+
			"make a new VM, or write %s to its file restore, which discards the system disk: %w",
			s.Base, image.Name, resetWord, ErrBusy)
	}
	return fmt.Errorf("its image %[1]s was replaced: it had the digest %[2]s at the last start "+
		"and now has %[3]s: write %[1]s to its file image to use the new one: %[4]w",
		image.Name, s.Base, image.Digest, ErrBusy)
}

// makeDir makes the VM's directory, which only the daemon enters, and the directory of its disks,
// which belongs to the VM's user.
func makeDir(spec *Spec) error {
	if err := renew(spec.Dir, spec.UID); err != nil {
		return err
	}
	for _, dir := range []string{spec.Dir, DisksDir(spec.Dir)} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return ownDisks(spec)
}

// makeDisks makes the directory and the disks of a VM that does not run.
func (v *VM) makeDisks(ctx context.Context, spec *Spec, driver Driver) error {
	if err := makeDir(spec); err != nil {
		return err
	}
	if len(spec.Disks) == 0 {
		return nil
	}
	if base := spec.Image.Digest; spec.Image.Root != "" && v.Snapshot().Base != base {
		// Before there is an overlay, so that its base is always known.
		set := func(d *draft) error { d.Base = base; return nil }
		err := v.update(context.WithoutCancel(ctx), set)
		if err != nil {
			return err
		}
	}
	log, err := v.openLog()
	if err != nil {
		return err
	}
	defer log.Close()
	spec.Log, spec.LogFile = ownLog{log}, log
	ctx, cancel := context.WithTimeout(ctx, tidyWait)
	defer cancel()
	return driver.MakeDisks(ctx, spec)
}

// ownDisks makes the VM's user the owner of its disks. After an import they are the daemon's. After
// a change of vm_uid_base they are another user's: the owner of their directory.
func ownDisks(spec *Spec) error {
	dir := DisksDir(spec.Dir)
	var st unix.Stat_t
	err := unix.Lstat(dir, &st)
	if err == unix.ENOENT || err == nil && (spec.UID < 0 || int(st.Uid) == spec.UID) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	for _, name := range []string{DiskOverlay, DiskWork, DiskRaw} {
		f, err := host.OpenRegular(DiskPath(spec.Dir, name), os.O_RDONLY, int(st.Uid))
		if err != nil {
			continue // it does not exist, or is no file that the driver would use
		}
		if err := errors.Join(f.Chown(spec.UID, spec.GID), f.Close()); err != nil {
			return err
		}
	}
	return os.Lchown(dir, spec.UID, spec.GID) // last: after a crash the rest is done again
}

// DiskBytes returns how many bytes of the host a disk's file uses, -1 if there is none. It counts
// st_blocks, which is in units of 512 in every file system (stat(2)).
func DiskBytes(path string) int64 {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return -1
	}
	return st.Blocks * 512
}

// diskBytes returns how many bytes of the host all disks in a VM's directory use.
func diskBytes(dir string) int64 {
	sum := int64(0)
	for _, name := range []string{DiskOverlay, DiskWork, DiskRaw} {
		sum += max(0, DiskBytes(DiskPath(dir, name)))
	}
	return sum
}
