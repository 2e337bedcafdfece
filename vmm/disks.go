package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/host"
)

// disksOf gives the disks of a VM with these settings.
func disksOf(dir string, c *Config, image *Image) []Disk {
	var disks []Disk
	if image.Root != "" {
		disks = append(disks, Disk{Path: DiskPath(dir, DiskOverlay), Format: "qcow2", Base: image.Root, BaseFormat: image.RootFormat})
	}
	if c.Disk > 0 {
		disks = append(disks, Disk{Path: DiskPath(dir, DiskWork), Format: "qcow2", Size: c.Disk})
	}
	return disks
}

// diskSpec gives what the driver has to know of the disks; the driver is nil if it keeps none.
func (v *VM) diskSpec() (*Spec, DiskKeeper, error) {
	s := v.Snapshot()
	image, err := v.m.o.Images.Image(s.Config.Image)
	if err != nil {
		return nil, nil, fmt.Errorf("image %q: %w", s.Config.Image, err)
	}
	if err := s.checkBase(&image); err != nil && !s.State.Alive() {
		return nil, nil, err
	}
	keeper, _ := v.m.drivers[s.Config.VMM].(DiskKeeper)
	spec := v.spec(image)
	if !s.State.Alive() {
		if err := ownDisks(spec); err != nil {
			return nil, nil, err
		}
	}
	return spec, keeper, nil
}

// hasOverlay reports whether the VM's system disk holds anything.
func (s *Snapshot) hasOverlay() bool {
	_, err := os.Lstat(DiskPath(s.Dir, DiskOverlay))
	return err == nil
}

// checkBase refuses an image that is not the one with which the VM was started before. Its overlay
// and another image would together be neither disk, and whoever may make images would run in a VM
// of somebody else.
func (s *Snapshot) checkBase(image *Image) error {
	switch {
	case s.Base == "", s.Base == image.Digest, image.Name == BuiltinImage:
		return nil
	case s.hasOverlay():
		return fmt.Errorf("its system disk is over an image of digest %s, and %s is now another: make a new VM, or write %s to its file restore, which discards what is on the system disk: %w",
			s.Base, image.Name, resetWord, ErrBusy)
	}
	return fmt.Errorf("its image %s was replaced: it had the digest %s at the last start and now has %s: "+
		"write %s to its file image to take the new one: %w", image.Name, s.Base, image.Digest, image.Name, ErrBusy)
}

// makeDir makes the VM's directory, which only the daemon enters, and in it that of its disks,
// which is its user's.
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
func (v *VM) makeDisks(ctx context.Context, spec *Spec, driver DiskKeeper) error {
	if err := makeDir(spec); err != nil {
		return err
	}
	if driver == nil || len(spec.Disks) == 0 {
		return nil
	}
	if base := spec.Image.Digest; spec.Image.Root != "" && v.Snapshot().Base != base {
		// Before there is an overlay, so that there never is one of which it is not known.
		if err := v.update(context.WithoutCancel(ctx), func(d *draft) error { d.Base = base; return nil }); err != nil {
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

// ownDisks gives the disks to the VM's user. Before they are those of nobody, after an import,
// or of the user that the VM had under another configuration: whoever has their directory.
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
			continue // it is not there, or nothing that the driver takes
		}
		if err := errors.Join(f.Chown(spec.UID, spec.GID), f.Close()); err != nil {
			return err
		}
	}
	return os.Lchown(dir, spec.UID, spec.GID) // last: after a crash it shows what is still to be done
}

// DiskBytes is what a disk's file takes on the host (st_blocks, which is in units of 512 whatever the file system, stat(2)); -1 if there is none.
func DiskBytes(path string) int64 {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return -1
	}
	return st.Blocks * 512
}

// diskBytes is what all disks in a VM's directory take.
func diskBytes(dir string) int64 {
	sum := int64(0)
	for _, name := range []string{DiskOverlay, DiskWork, DiskRaw} {
		sum += max(0, DiskBytes(DiskPath(dir, name)))
	}
	return sum
}
