package fs

import (
	"context"
	"fmt"
	"strconv"

	"banger/internal/value"
	"banger/vmm"
)

// The parameter of a snapshot's nodes is its number among the VM's.

func snapshotsList(r *request) []dirent {
	kept := r.snap().Kept()
	list := make([]dirent, len(kept))
	for i := range kept {
		list[i] = snapshotEntry(&kept[i])
	}
	return list
}

func snapshotsFind(r *request, name string) (dirent, bool) {
	for _, d := range r.snap().Kept() {
		if d.Name == name {
			return snapshotEntry(&d), true
		}
	}
	return dirent{}, false
}

func snapshotsName(r *request) string {
	if d := r.snapshot(); d != nil {
		return d.Name
	}
	return ""
}

func snapshotEntry(d *vmm.DiskSnapshot) dirent {
	return dirent{name: d.Name, serial: d.Serial, param: d.Number}
}

// snapshot returns the snapshot of the request's node, nil after its removal.
func (r *request) snapshot() *vmm.DiskSnapshot {
	for _, d := range r.snap().Kept() {
		if d.Number == r.param {
			return &d
		}
	}
	return nil
}

func snapshotAttr(r *request, a *attributes) {
	if d := r.snapshot(); d != nil {
		a.changed, a.created = d.Created, d.Created
	}
}

func snapshotFiles() []file {
	part := func(name, doc string, text func(*vmm.DiskSnapshot) string) file {
		return file{name: name, mode: 0o440, doc: doc, show: func(r *request) ([]byte, error) {
			d := r.snapshot()
			if d == nil {
				return nil, fmt.Errorf("the snapshot was removed: %w", vmm.ErrNotFound)
			}
			return line(text(d))
		}}
	}
	type disks = vmm.DiskSnapshot
	return []file{
		part("created", "Unix seconds",
			func(d *disks) string { return value.FormatTime(d.Created) }),
		part("size", "bytes of the disks on the host at that time",
			func(d *disks) string { return strconv.FormatInt(d.Size, 10) }),
		part("state", "the VM's state at that time",
			func(d *disks) string { return string(d.State) }),
		part("frozen", "1: the guest's file systems were frozen",
			func(d *disks) string { return value.FormatBool(d.Frozen) }),
	}
}

func snapshotsMkdir(r *request, name string, _ vmm.Owner) error {
	return r.changeSnapshots(func(ctx context.Context, mayWrite func(vmm.Owner) error) error {
		return r.vm.TakeSnapshot(ctx, name, mayWrite)
	})
}

func snapshotsRmdir(r *request, name string) error {
	return r.changeSnapshots(func(ctx context.Context, mayWrite func(vmm.Owner) error) error {
		return r.vm.RemoveSnapshot(ctx, name, mayWrite)
	})
}

func (r *request) changeSnapshots(f func(context.Context, func(vmm.Owner) error) error) error {
	mayWrite, err := r.mayWrite()
	if err != nil {
		return err
	}
	return r.detached(func(ctx context.Context) error { return f(ctx, mayWrite) })
}

// restoreShow returns nothing: the name of an earlier snapshot does not describe the disks of now.
func restoreShow(*request) ([]byte, error) { return nil, nil }

func restoreStore(w *writeRequest, text string) error {
	return w.detached(func(ctx context.Context) error { return w.vm.Restore(ctx, text) })
}
