package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"banger/internal/host"
	"banger/internal/printable"
	"banger/internal/sshkeys"
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
		return nil, nil, err
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
	missing := slices.ContainsFunc(spec.Disks, func(d Disk) bool { return DiskBytes(d.Path) < 0 })
	if err := driver.MakeDisks(ctx, spec); err != nil || !missing {
		return err
	}
	return syncDisks(spec)
}

// syncDisks makes new disks durable, with the names of all directories that lead to them. What a
// guest syncs, and each snapshot, relies on these.
func syncDisks(spec *Spec) error {
	for _, d := range spec.Disks {
		f, err := host.OpenRegular(d.Path, os.O_RDONLY, host.AnyOwner)
		if errors.Is(err, os.ErrNotExist) {
			continue // one of an earlier version stays in its place
		}
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			return err
		}
	}
	for _, dir := range []string{DisksDir(spec.Dir), spec.Dir, filepath.Dir(spec.Dir)} {
		if err := host.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
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

// In an earlier banger the whole directory of a VM belonged to the VM's user. Its files may be the
// work of a VMM that its guest has taken over, and that still runs.

// movingSuffix ends the name of a directory while it is changed.
const movingSuffix = ".moving"

// movedFiles are moved out of such a directory if they are of this kind. A file of another kind
// stays with the disks, where nothing uses it.
var movedFiles = []struct {
	name string
	kind uint32
}{
	{LogFile, unix.S_IFREG}, {ConsoleFile, unix.S_IFREG},
	// A VMM that runs listens on its sockets, whatever their names are.
	{"qmp", unix.S_IFSOCK}, {"agent", unix.S_IFSOCK}, {"console", unix.S_IFSOCK},
}

// isOld reports whether a directory has an earlier banger's layout. uid is the VM's user.
func isOld(dir string, uid int) bool {
	var st unix.Stat_t
	if unix.Lstat(dir, &st) != nil {
		return false
	}
	if uid >= 0 && int(st.Uid) != os.Geteuid() {
		return true // a directory of disks in it may be anybody's
	}
	return unix.Lstat(DisksDir(dir), &st) != nil
}

// renew changes a directory of an earlier banger: it becomes the directory of disks in a new one.
// After a crash the next call goes on. The VM may run: files that its VMM has open stay open.
func renew(dir string, uid int) error {
	moving := dir + movingSuffix
	if isOld(dir, uid) {
		if err := os.Mkdir(moving, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := os.Rename(dir, DisksDir(moving)); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(moving); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if _, err := os.Lstat(DisksDir(moving)); errors.Is(err, os.ErrNotExist) {
		return os.Remove(moving) // a crash came before anything was moved
	}
	for _, f := range movedFiles {
		if err := moveFile(moving, f.name, f.kind); err != nil {
			return fmt.Errorf("cannot move %s out of %s: %w", f.name, DisksDir(moving), err)
		}
	}
	key := filepath.Join(moving, HostKeyFile)
	if err := sshkeys.MoveHostKey(DiskPath(moving, HostKeyFile), key); err != nil {
		return fmt.Errorf("cannot keep the ssh host key of %s: %w", moving, err)
	}
	_ = os.Remove(DiskPath(moving, DiskSeed)) // the next start makes it; a running VMM has it open
	return os.Rename(moving, dir)
}

// moveFile moves a file out of the directory of the disks, if it is of that kind and has one name,
// and makes the daemon its owner. It checks the file where nobody can exchange it any more.
func moveFile(dir, name string, kind uint32) error {
	path := filepath.Join(dir, name)
	err := os.Rename(DiskPath(dir, name), path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil // there is none
	}
	if st.Mode&unix.S_IFMT != kind || st.Nlink != 1 {
		return os.Rename(path, DiskPath(dir, name+"-"+uuid.NewString())) // no such file can exist
	}
	if err := os.Lchown(path, os.Geteuid(), os.Getegid()); err != nil {
		return err
	}
	return os.Chmod(path, 0o600)
}

// Suffixes of the names of unfinished files. The next start of the daemon removes them.
const (
	NewSuffix    = ".new"    // becomes the file without it
	RawSuffix    = ".raw"    // of a disk: an earlier form
	ExportSuffix = ".export" // of a disk: a copy, which loses its name as soon as it is whole
)

// removeUnfinished removes files that a crash kept from getting their names. A host key that has
// two names would be refused.
func removeUnfinished(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it never started
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || strings.HasSuffix(e.Name(), NewSuffix) {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	for _, disk := range []string{DiskOverlay, DiskWork} {
		for _, suffix := range []string{NewSuffix, RawSuffix, ExportSuffix} {
			names = append(names, DiskPath(dir, disk+suffix))
		}
	}
	for _, name := range names {
		if e := os.Remove(name); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

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
