package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Archives export VMs as files and import such files. Implemented by vmm/archive.
type Archives interface {
	// Export returns an archive of a VM. It blocks until the disks are copied, for which the host
	// needs as much room as the archive has. The work ends with ctx. ErrBusy unless the VM is
	// stopped or failed.
	Export(ctx context.Context, v *VM) (Archive, error)
	// Import makes a VM of an archive of anybody. It uses its settings and disks only, and checks
	// all of them before there is a VM. It reads r to the archive's end and not beyond. An empty
	// name stands for the one in the archive. After an error or a crash nothing is left.
	// ErrInvalid for what is no archive, ErrNotFound if there is no such image, ErrExists, ErrBusy
	// if too many imports are under way.
	Import(ctx context.Context, name string, owner Owner, r io.Reader) (*VM, error)
}

// Archive is the content of an exported VM. Later changes of the VM do not change it. The caller
// closes it.
type Archive interface {
	io.ReaderAt
	io.Closer
}

// ExportDisks calls read with the disks of a VM, as a transition of the VM. It makes the disks that
// no start has made. The work ends with ctx. ErrBusy unless the VM is stopped or failed.
func (v *VM) ExportDisks(ctx context.Context,
	read func(context.Context, *Spec, Driver) error) error {
	doing := "cannot export " + v.Snapshot().Name
	return v.during(context.WithoutCancel(ctx), Export, doing, func(work context.Context) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		work, cancel := context.WithCancel(work)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		if err := v.Snapshot().checkDown(); err != nil {
			return err
		}
		if err := v.tidy(work); err != nil {
			return err
		}
		spec, driver, err := v.diskSpec()
		if err == nil && len(spec.Disks) > 0 {
			err = v.makeDisks(work, spec, driver)
		}
		if err == nil {
			err = read(work, spec, driver)
		}
		if err == nil {
			v.logf("exported")
		}
		return err
	})
}

// CreateWithDisks makes a VM of the defaults, as settings changes them, and of the disks that fill
// puts in place. Nobody else can have the name meanwhile. After an error or a crash nothing is left.
// ErrInvalid, ErrNameTooLong, ErrExists.
func (m *Manager) CreateWithDisks(ctx context.Context, name string, owner Owner, image *Image,
	settings func(*Config) error, fill func(*Spec, Driver) error) (*VM, error) {
	c := m.o.Defaults
	if err := settings(&c); err != nil {
		return nil, err
	}
	if err := m.checkConfig(&Config{Net: c.Net}, &c); err != nil {
		return nil, err
	}
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if !m.reserve(name) {
		return nil, fmt.Errorf("%s: %w", name, ErrExists)
	}
	defer m.release(name)
	r := newRecord(name, owner, c)
	if image.Root != "" {
		r.Base = image.Digest
	}
	dir := filepath.Join(m.vmsDir, r.ID) // without a record the next start removes it
	spec := &Spec{ID: r.ID, Name: name, StateDir: m.o.StateDir, Dir: dir, Config: c, Image: *image,
		Disks: disksOf(dir, &c, image), UID: -1, GID: -1}
	err := makeDir(spec)
	if err == nil {
		err = fill(spec, m.driver(c.VMM))
	}
	var v *VM
	if err == nil {
		v, err = m.add(ctx, r, "imported")
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return v, nil
}
