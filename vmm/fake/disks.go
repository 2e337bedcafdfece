package fake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/host"
	"banger/vmm"
	"banger/vmm/guest"
)

// savedDir is the prefix of a snapshot's directory, beside the disks.
const savedDir = "snapshot-"

// MakeDisks implements vmm.Driver with sparse files.
func (d *Driver) MakeDisks(_ context.Context, spec *vmm.Spec) error {
	for _, disk := range spec.Disks {
		f, err := os.OpenFile(disk.Path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err == nil && info.Size() < disk.Size {
			err = f.Truncate(disk.Size)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Disks implements vmm.Driver.
func (d *Driver) Disks(spec *vmm.Spec) vmm.Snapshotter {
	s, err := parseScript(spec.Config.Cmdline)
	return disks{vmm.DisksDir(spec.Dir), s, err}
}

// RestoreDisks implements vmm.Driver.
func (d *Driver) RestoreDisks(_ context.Context, spec *vmm.Spec, tag string) error {
	dir := vmm.DisksDir(spec.Dir)
	from := filepath.Join(dir, savedDir+tag)
	entries, err := os.ReadDir(from)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the disks have no snapshot %s: %w", tag, vmm.ErrNotFound)
	}
	for _, e := range entries {
		saved, disk := filepath.Join(from, e.Name()), filepath.Join(dir, e.Name())
		err = errors.Join(err, copySparse(saved, disk))
	}
	return err
}

// ExportDisk implements vmm.Driver.
func (d *Driver) ExportDisk(_ context.Context, _ *vmm.Spec, disk vmm.Disk) (*os.File, error) {
	path := disk.Path + vmm.ExportSuffix
	if err := copySparse(disk.Path, path); err != nil {
		return nil, errors.Join(err, os.RemoveAll(path))
	}
	f, err := os.Open(path)
	return f, errors.Join(err, os.Remove(path))
}

// ImportDisks implements vmm.Driver.
func (d *Driver) ImportDisks(context.Context, *vmm.Spec) error { return nil }

// disks are the files of one VM.
type disks struct {
	dir    string
	script script
	err    error // of the script
}

// TakeSnapshot implements vmm.Snapshotter.
func (d disks) TakeSnapshot(ctx context.Context, tag string) error {
	to := filepath.Join(d.dir, savedDir+tag)
	if err := errors.Join(d.err, os.Mkdir(to, 0o700)); err != nil {
		return err
	}
	if d.script.slowSave > 0 {
		select {
		case <-time.After(d.script.slowSave):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if d.script.failSave {
		return errors.New("the fake snapshot fails as the cmdline tells it to")
	}
	for _, name := range []string{vmm.DiskOverlay, vmm.DiskWork} {
		err := copySparse(filepath.Join(d.dir, name), filepath.Join(to, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return errors.Join(host.SyncDir(to), host.SyncDir(d.dir))
}

// DropSnapshot implements vmm.Snapshotter.
func (d disks) DropSnapshot(_ context.Context, tag string) error {
	err := os.RemoveAll(filepath.Join(d.dir, savedDir+tag))
	if err == nil {
		err = host.SyncDir(d.dir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // there are no disks
	}
	return err
}

func (m *machine) disks() disks { return disks{vmm.DisksDir(m.dir), m.script, nil} }

func (m *machine) TakeSnapshot(ctx context.Context, tag string) error {
	return m.disks().TakeSnapshot(ctx, tag)
}

func (m *machine) DropSnapshot(ctx context.Context, tag string) error {
	return m.disks().DropSnapshot(ctx, tag)
}

// GrowDisk implements vmm.Machine.
func (m *machine) GrowDisk(_ context.Context, size int64) error {
	if err := os.Truncate(vmm.DiskPath(m.dir, vmm.DiskWork), size); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disk = size
	return nil
}

// copySparse copies a file, keeps its holes, and syncs the copy.
func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = out.Truncate(info.Size())
	for off := int64(0); err == nil; {
		data, e := unix.Seek(int(in.Fd()), off, unix.SEEK_DATA)
		if e == unix.ENXIO {
			break // only a hole is left
		}
		hole, e2 := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err = errors.Join(e, e2); err != nil {
			break
		}
		_, err = io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, hole-data))
		off = hole
	}
	if err == nil {
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}

var _ guest.Freezer = agent{}
