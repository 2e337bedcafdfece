package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"banger/vmm"
)

// Disks implements vmm.Driver.
func (d *Driver) Disks(spec *vmm.Spec) vmm.Snapshotter { return restingDisks{spec} }

// restingDisks are the disks of a VM that does not run.
type restingDisks struct{ spec *vmm.Spec }

// TakeSnapshot implements vmm.Snapshotter.
func (r restingDisks) TakeSnapshot(ctx context.Context, tag string) error {
	t, err := newTools(r.spec)
	if err != nil {
		return err
	}
	for _, disk := range t.spec.Disks {
		if disk = actual(disk); disk.Format != qcow2 {
			return fmt.Errorf("its disk %s could not be converted, its log says why: %w",
				filepath.Base(disk.Path), vmm.ErrUnsupported)
		}
		if err := t.snapshot(ctx, "-c", tag, disk); err != nil {
			return err
		}
	}
	return nil
}

// DropSnapshot implements vmm.Snapshotter.
func (r restingDisks) DropSnapshot(ctx context.Context, tag string) error {
	t, err := newTools(r.spec)
	if err != nil {
		return err
	}
	_, err = t.inEach(ctx, "-d", tag)
	return err
}

// RestoreDisks implements vmm.Driver.
func (d *Driver) RestoreDisks(ctx context.Context, spec *vmm.Spec, tag string) error {
	t, err := newTools(spec)
	if err != nil {
		return err
	}
	n, err := t.inEach(ctx, "-a", tag)
	if err == nil && n == 0 {
		err = fmt.Errorf("the disks have no snapshot %s: %w", tag, vmm.ErrNotFound)
	}
	return err
}

// inEach applies an option of qemu-img snapshot to each disk that has the snapshot, and returns
// their number.
func (t *tools) inEach(ctx context.Context, option, tag string) (int, error) {
	disks, err := t.having(ctx, tag)
	if err != nil {
		return 0, err
	}
	for _, disk := range disks {
		if err := t.snapshot(ctx, option, tag, disk); err != nil {
			return 0, err
		}
	}
	return len(disks), nil
}

// having returns the disks that have the snapshot.
func (t *tools) having(ctx context.Context, tag string) ([]vmm.Disk, error) {
	var disks []vmm.Disk
	for _, disk := range t.spec.Disks {
		if disk = actual(disk); disk.Format != qcow2 {
			continue
		}
		if _, err := os.Lstat(disk.Path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		text, err := t.run(ctx, "", "qemu-img", "info", "--output=json", toolImage(alone(disk)))
		if err != nil {
			return nil, err
		}
		var info imageInfo
		if err := json.Unmarshal(text, &info); err != nil {
			return nil, fmt.Errorf("cannot read qemu-img's report on %s: %w",
				filepath.Base(disk.Path), err)
		}
		if info.has(tag) {
			disks = append(disks, disk)
		}
	}
	return disks, nil
}

// imageInfo is ImageInfo of QEMU's schema (qapi/block-core.json).
type imageInfo struct {
	Snapshots []struct {
		Name string `json:"name"`
	} `json:"snapshots"`
}

func (i *imageInfo) has(tag string) bool {
	for _, s := range i.Snapshots {
		if s.Name == tag {
			return true
		}
	}
	return false
}

// snapshot makes (-c), removes (-d) or applies (-a) a snapshot in a disk that no VMM uses.
func (t *tools) snapshot(ctx context.Context, option, tag string, disk vmm.Disk) error {
	return t.qemuImg(ctx, disk.Base, "snapshot", "-q", option, tag, toolImage(disk))
}

// namedNode is an entry of query-named-block-nodes, as far as it matters here.
type namedNode struct {
	Name   string    `json:"node-name"`
	Driver string    `json:"drv"`
	Image  imageInfo `json:"image"`
}

// nodes returns the nodes of the disks that banger makes, without the files below them.
func (m *Machine) nodes(ctx context.Context) ([]namedNode, error) {
	var all []namedNode
	flat := map[string]bool{"flat": true}
	if err := m.call(ctx, "query-named-block-nodes", flat, &all); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(n namedNode) bool {
		return n.Name != overlayNode && n.Name != workNode
	}), nil
}

// action is a TransactionAction of QEMU's schema (qapi/transaction.json).
type action struct {
	Type string            `json:"type"`
	Data map[string]string `json:"data"`
}

// TakeSnapshot implements vmm.Snapshotter with one transaction over the disks. QEMU completes no
// request of the guest on any of them between the first snapshot and the last. All disks have it or
// none.
func (m *Machine) TakeSnapshot(ctx context.Context, tag string) error {
	nodes, err := m.nodes(ctx)
	if err != nil {
		return err
	}
	var actions []action
	saved := 0
	for _, n := range nodes {
		saved = max(saved, len(n.Image.Snapshots)+1)
		if n.Driver != qcow2 {
			return fmt.Errorf("its disk %s was made by an earlier banger and is converted at its"+
				" next start: restart it first: %w", n.Name, vmm.ErrUnsupported)
		}
		actions = append(actions, action{"blockdev-snapshot-internal-sync", snapshotOf(n, tag)})
	}
	if len(actions) == 0 {
		return fmt.Errorf("it was started without a disk: %w", vmm.ErrUnsupported)
	}
	if err := m.widen(saved, 0); err != nil {
		return err
	}
	return noSpace(m.call(ctx, "transaction", map[string]any{"actions": actions}, nil))
}

func snapshotOf(n namedNode, tag string) map[string]string {
	return map[string]string{"device": n.Name, "name": tag}
}

// DropSnapshot implements vmm.Snapshotter.
func (m *Machine) DropSnapshot(ctx context.Context, tag string) error {
	nodes, err := m.nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if !n.Image.has(tag) {
			continue
		}
		const remove = "blockdev-snapshot-delete-internal-sync"
		if err := m.call(ctx, remove, snapshotOf(n, tag), nil); err != nil {
			return noSpace(err)
		}
	}
	return nil
}

// GrowDisk implements vmm.Machine.
func (m *Machine) GrowDisk(ctx context.Context, size int64) error {
	if err := m.widen(0, size); err != nil {
		return err
	}
	grown := map[string]any{"node-name": workNode, "size": inSectors(size)}
	return noSpace(m.call(ctx, "block_resize", grown, nil))
}
