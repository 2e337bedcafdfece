package fs

import (
	"context"
	"fmt"
	"strconv"

	"banger/internal/value"
	"banger/vmm"
)

// The parameter of a snapshot's nodes is its number among the VM's.

func snapshotsList(r *request) []entry {
	kept := r.snap().Kept()
	entries := make([]entry, 0, len(kept))
	for _, d := range kept {
		entries = append(entries, snapshotEntry(&d))
	}
	return entries
}

func snapshotsFind(r *request, name string) (entry, bool) {
	for _, d := range r.snap().Kept() {
		if d.Name == name {
			return snapshotEntry(&d), true
		}
	}
	return entry{}, false
}

func snapshotEntry(d *vmm.DiskSnapshot) entry {
	return entry{name: d.Name, serial: d.Serial, row: snapshotRow.row, param: d.Number}
}

// snapshot is that of the request's node, nil if it was removed.
func (r *request) snapshot() *vmm.DiskSnapshot {
	for _, d := range r.snap().Kept() {
		if d.Number == r.param {
			return &d
		}
	}
	return nil
}

func snapshotFiles() []file {
	part := func(name, doc string, get func(*vmm.DiskSnapshot) string) file {
		return file{name: name, mode: 0o440, doc: doc, show: func(r *request) ([]byte, error) {
			d := r.snapshot()
			if d == nil {
				return nil, fmt.Errorf("the snapshot was removed: %w", vmm.ErrNotFound)
			}
			return line(get(d))
		}}
	}
	return []file{
		part("created", "Unix seconds", func(d *vmm.DiskSnapshot) string { return value.FormatTime(d.Created) }),
		part("size", "bytes that the disks took on the host then", func(d *vmm.DiskSnapshot) string { return strconv.FormatInt(d.Size, 10) }),
		part("state", "in which it was taken", func(d *vmm.DiskSnapshot) string { return string(d.State) }),
		part("frozen", "1: the guest's file systems stood still", func(d *vmm.DiskSnapshot) string { return value.FormatBool(d.Frozen) }),
	}
}

func snapshotsMake(r *request, name string, _ vmm.Owner) error {
	may, err := r.mayWrite()
	if err != nil {
		return err
	}
	if err := r.detached(func(ctx context.Context) error { return r.vm.TakeSnapshot(ctx, name, may) }); err != nil {
		return err
	}
	if e, ok := snapshotsFind(r, name); ok {
		r.file, r.node = snapshotRow, nodeID(e.serial, e.row, e.param)
	}
	return nil
}

func snapshotsRemove(r *request, name string) error {
	may, err := r.mayWrite()
	if err != nil {
		return err
	}
	return r.detached(func(ctx context.Context) error { return r.vm.RemoveSnapshot(ctx, name, may) })
}

// restoreShow gives nothing: what the disks were put back to says nothing of what they are now.
func restoreShow(*request) ([]byte, error) { return nil, nil }

func restoreStore(r *request, text string) error {
	return r.detached(func(ctx context.Context) error { return r.vm.Restore(ctx, text) })
}
