package qemu

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"banger/internal/host"
	"banger/vmm"
)

// Whatever reads or writes a disk runs as the VM's user, whose directory it is in: what a VMM
// that was taken over by its guest leaves there is then opened with no more rights than that VMM
// had. The programs inherit the directory and the base, for no VM's user enters the state
// directory. No format is ever guessed: a guest may write the beginning of any format on a raw
// disk. Nor is a path in a disk's header followed.

const (
	sector = 512
	// formatMost bounds the file system that a new disk begins with; the agent grows it to the disk's length. It keeps what mke2fs
	// writes small for disks of terabytes.
	formatMost = 4 << 30
	// formatLeast is the smallest disk that gets one.
	formatLeast = 1 << 20
	maxTold     = 4 << 20 // bytes of what a program says
)

// makeFS are the options of mke2fs(8): what ext4 is must not depend on the host's mke2fs.conf, for the guest's kernel may be older.
var makeFS = []string{"-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-L", "work",
	"-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"}

// MakeDisks implements vmm.DiskKeeper. A crash leaves each disk as it was or whole.
func (d *Driver) MakeDisks(ctx context.Context, spec *vmm.Spec) error {
	t, err := d.tools(spec)
	if err != nil {
		return err
	}
	for _, disk := range t.spec.Disks {
		if err := t.make(ctx, disk); err != nil {
			return err
		}
	}
	return nil
}

// tools run programs on the disks of one VM.
type tools struct{ spec *vmm.Spec }

// alone is a disk without its base, for what looks at the disk's own file only.
func alone(d vmm.Disk) vmm.Disk {
	d.Base, d.BaseFormat = "", ""
	return d
}

// What a program inherits: the directory of the disks and, where there is one, the base of the
// disk that it works on.
const (
	toolDir  = firstFD
	toolBase = firstFD + 1
)

// at is a file of the directory of the disks as a program names it.
func at(path string) string { return selfFD(toolDir) + "/" + filepath.Base(path) }

// image is a disk as qemu-img names it, with its format and its base's.
func image(d vmm.Disk) string {
	var base any
	if d.Base != "" {
		base = baseNode(d, "", selfFD(toolBase))
	}
	return "json:" + string(mustJSON(diskNode(d, "", at(d.Path), base)))
}

func (d *Driver) tools(spec *vmm.Spec) (*tools, error) {
	spec, err := absolute(spec)
	return &tools{spec}, err
}

func (t *tools) logf(format string, args ...any) {
	if t.spec.Log != nil {
		fmt.Fprintf(t.spec.Log, "banger: "+format+"\n", args...)
	}
}

// make makes a disk that is not there and grows one that is too small.
func (t *tools) make(ctx context.Context, d vmm.Disk) error {
	size := (d.Size + sector - 1) / sector * sector
	has, err := virtualSize(d, t.spec.UID)
	raw := rawTwin(d)
	if err == nil && raw.Path != "" { // it was converted, which a crash cut short at its end
		err = os.Remove(raw.Path)
	}
	switch {
	case err == nil && has >= size:
		return nil
	case err == nil:
		if err := t.qemuImg(ctx, d.Base, "resize", "-q", image(d), strconv.FormatInt(size, 10)); err != nil {
			return fmt.Errorf("cannot grow the disk %s: %w", filepath.Base(d.Path), err)
		}
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("cannot look at the disk %s: %w", filepath.Base(d.Path), err)
	}
	fresh, from := d.Path+".new", d.Path+".raw"
	for _, path := range []string{fresh, from} { // of a start that was cut short
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	defer os.Remove(from)
	if d.Base != "" {
		// The path in the header is for people: -u opens nothing.
		long, err := baseSize(d)
		if err == nil {
			err = t.qemuImg(ctx, "", "create", "-q", "-u", "-f", d.Format, "-b", d.Base, "-F", d.BaseFormat, at(fresh),
				strconv.FormatInt(max(size, long), 10))
		}
		if err != nil {
			return fmt.Errorf("cannot make a disk over %s: %w", d.Base, err)
		}
		return t.settle(fresh, d.Path)
	}
	if raw.Path != "" && vmm.DiskBytes(raw.Path) > 0 {
		return t.convert(ctx, d, raw, fresh)
	}
	if err := t.format(ctx, from, size); err != nil {
		return fmt.Errorf("cannot make a file system for the disk %s: %w", filepath.Base(d.Path), err)
	}
	args := []string{"create", "-q", "-f", d.Format, at(fresh), strconv.FormatInt(size, 10)}
	if _, err := os.Lstat(from); err == nil {
		args = []string{"convert", "-q", "-f", "raw", "-O", d.Format, at(from), at(fresh)}
	}
	if err = t.qemuImg(ctx, "", args...); err == nil && min(size, formatMost) < size {
		err = t.qemuImg(ctx, "", "resize", "-q", image(vmm.Disk{Path: fresh, Format: d.Format}), strconv.FormatInt(size, 10))
	}
	if err != nil {
		return fmt.Errorf("cannot make the disk %s: %w", filepath.Base(d.Path), err)
	}
	return t.settle(fresh, d.Path)
}

// settle gives a finished file its name, once all of it is on the disk.
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

// format makes the file system of a new disk in the file path, of at most formatMost. A disk too small for one gets none, nor does any on
// a host without mke2fs.
func (t *tools) format(ctx context.Context, path string, size int64) error {
	if size < formatLeast {
		t.logf("a disk of %d bytes is too small for a file system: it is left blank", size)
		return nil
	}
	program := findProgram("mke2fs")
	if program == "" {
		t.logf("there is no mke2fs here (install e2fsprogs): the disk is left blank")
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(f.Chown(t.spec.UID, t.spec.GID), f.Truncate(min(size, formatMost))); err != nil {
		return err
	}
	args := makeFS
	if size >= 1<<30 {
		args = append(slices.Clone(args), "-J", "size=32") // what it reserves on the host meanwhile
	}
	_, err = t.run(ctx, "", program, append(slices.Clone(args), at(path))...)
	return err
}

// convert makes a disk of the raw one of an earlier banger. Where the host has no room for both the raw one goes on being used.
func (t *tools) convert(ctx context.Context, d, raw vmm.Disk, fresh string) error {
	err := t.qemuImg(ctx, "", "convert", "-q", "-f", "raw", "-O", d.Format, at(raw.Path), at(fresh))
	if err != nil {
		os.Remove(fresh)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		t.logf("the disk stays %s, of which there are no snapshots: it cannot be converted: %v", filepath.Base(raw.Path), err)
		return t.make(ctx, raw)
	}
	if err := t.settle(fresh, d.Path); err != nil {
		return err
	}
	return t.make(ctx, d) // which removes the raw one
}

// rawTwin is the raw disk that an earlier banger made in place of d; without a path if there is none.
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

// actual is the disk that stands for d: the raw one of an earlier banger where that could not be converted.
func actual(d vmm.Disk) vmm.Disk {
	if _, err := os.Lstat(d.Path); errors.Is(err, fs.ErrNotExist) {
		if raw := rawTwin(d); raw.Path != "" {
			return raw
		}
	}
	return d
}

// virtualSize gives the bytes that the guest sees of a disk, whose file belongs to owner.
func virtualSize(d vmm.Disk, owner int) (int64, error) {
	f, err := host.OpenRegular(d.Path, os.O_RDONLY, owner)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return readSize(f, d.Format)
}

// baseSize is virtualSize of what d is an overlay of.
func baseSize(d vmm.Disk) (int64, error) {
	f, err := os.Open(d.Base)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return readSize(f, d.BaseFormat)
}

func readSize(f *os.File, format string) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if format == "raw" {
		return info.Size(), nil
	}
	var head [32]byte // docs/interop/qcow2.txt of QEMU: magic, ..., size in bytes 24 to 31
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, int64(len(head))), head[:]); err != nil || string(head[:4]) != "QFI\xfb" {
		return 0, errors.New("it is not a qcow2 image")
	}
	return int64(binary.BigEndian.Uint64(head[24:])), nil
}

// Disks implements vmm.DiskKeeper.
func (d *Driver) Disks(spec *vmm.Spec) vmm.Snapshotter { return restingDisks{d, spec} }

// restingDisks are those of a VM that does not run.
type restingDisks struct {
	driver *Driver
	spec   *vmm.Spec
}

// TakeSnapshot implements vmm.Snapshotter.
func (r restingDisks) TakeSnapshot(ctx context.Context, tag string) error {
	t, err := r.driver.tools(r.spec)
	if err != nil {
		return err
	}
	for _, disk := range t.spec.Disks {
		if disk = actual(disk); disk.Format != "qcow2" {
			return fmt.Errorf("its disk %s could not be converted, its log says why: %w", filepath.Base(disk.Path), vmm.ErrUnsupported)
		}
		if err := t.snapshot(ctx, "-c", tag, disk); err != nil {
			return err
		}
	}
	return nil
}

// DropSnapshot implements vmm.Snapshotter.
func (r restingDisks) DropSnapshot(ctx context.Context, tag string) error {
	t, err := r.driver.tools(r.spec)
	if err != nil {
		return err
	}
	disks, err := t.having(ctx, tag)
	if err != nil {
		return err
	}
	for _, disk := range disks {
		if err := t.snapshot(ctx, "-d", tag, disk); err != nil {
			return err
		}
	}
	return nil
}

// RestoreDisks implements vmm.DiskKeeper.
func (d *Driver) RestoreDisks(ctx context.Context, spec *vmm.Spec, tag string) error {
	t, err := d.tools(spec)
	if err != nil {
		return err
	}
	disks, err := t.having(ctx, tag)
	if err == nil && len(disks) == 0 {
		err = fmt.Errorf("the disks have no snapshot %s: %w", tag, vmm.ErrNotFound)
	}
	if err != nil {
		return err
	}
	for _, disk := range disks {
		if err := t.snapshot(ctx, "-a", tag, disk); err != nil {
			return err
		}
	}
	return nil
}

// ExportDisk implements vmm.DiskKeeper.
func (d *Driver) ExportDisk(ctx context.Context, spec *vmm.Spec, disk vmm.Disk) (*os.File, error) {
	t, err := d.tools(spec)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(spec.Disks, func(x vmm.Disk) bool { return x == disk })
	disk = actual(t.spec.Disks[i]) // with its absolute paths
	path := disk.Path + ".export"
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	defer os.Remove(path) // its content lives as long as it is open
	args := []string{"convert", "-q", "-c", "-O", "qcow2", "-o", "compression_type=zstd"}
	if disk.Base != "" {
		args = append(args, "-B", "json:"+string(mustJSON(baseNode(disk, "", selfFD(toolBase)))), "-F", disk.BaseFormat)
	}
	if err := t.qemuImg(ctx, disk.Base, append(args, image(disk), at(path))...); err != nil {
		return nil, fmt.Errorf("cannot copy the disk %s: %w", filepath.Base(disk.Path), err)
	}
	if disk.Base != "" {
		// Where the base is says something of this host and nothing to another.
		if err := t.qemuImg(ctx, "", "rebase", "-q", "-u", "-f", "qcow2", "-b", "", at(path)); err != nil {
			return nil, err
		}
	}
	return host.OpenRegular(path, os.O_RDONLY, t.spec.UID)
}

// ImportDisks implements vmm.DiskKeeper.
func (d *Driver) ImportDisks(ctx context.Context, spec *vmm.Spec) error {
	t, err := d.tools(spec)
	if err != nil {
		return err
	}
	for _, disk := range t.spec.Disks {
		name := filepath.Base(disk.Path)
		switch err := checkHead(disk.Path, t.spec.UID); {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return fmt.Errorf("the disk %s: %v: %w", name, err, vmm.ErrInvalid)
		}
		if err := t.qemuImg(ctx, "", "check", "-q", image(alone(disk))); err != nil {
			if ctx.Err() != nil {
				return err
			}
			return fmt.Errorf("the disk %s is damaged: %v: %w", name, err, vmm.ErrInvalid)
		}
		if disk.Base == "" {
			continue
		}
		if err := t.qemuImg(ctx, "", "rebase", "-q", "-u", "-f", "qcow2", "-b", disk.Base, "-F", disk.BaseFormat, at(disk.Path)); err != nil {
			return fmt.Errorf("cannot make %s a disk over %s: %w", name, disk.Base, err)
		}
	}
	return nil
}

// maxImported bounds what an imported disk says that its length is, bytes.
const maxImported = 1 << 44

// checkHead refuses an image that is more than data: one over another file, with its data in another, encrypted, with snapshots, or of
// features that ExportDisk does not use (docs/interop/qcow2.txt of QEMU).
func checkHead(path string, owner int) error {
	f, err := host.OpenRegular(path, os.O_RDONLY, owner)
	if err != nil {
		return err
	}
	defer f.Close()
	var head [104]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return errors.New("it is too short")
	}
	word := func(at int) uint32 { return binary.BigEndian.Uint32(head[at:]) }
	long := func(at int) uint64 { return binary.BigEndian.Uint64(head[at:]) }
	const compressionType = 1 << 3 // of the incompatible features
	switch {
	case string(head[:4]) != "QFI\xfb" || word(4) != 3:
		return errors.New("it is not a qcow2 image of version 3")
	case long(8) != 0 || word(16) != 0:
		return errors.New("it is over another file")
	case word(32) != 0:
		return errors.New("it is encrypted")
	case word(60) != 0:
		return errors.New("it has snapshots")
	case long(72)&^compressionType != 0:
		return errors.New("it has features that no exported disk has")
	case long(24) > maxImported:
		return errors.New("it is too long")
	}
	return nil
}

// having gives the disks that have the snapshot.
func (t *tools) having(ctx context.Context, tag string) ([]vmm.Disk, error) {
	var disks []vmm.Disk
	for _, disk := range t.spec.Disks {
		if disk = actual(disk); disk.Format != "qcow2" {
			continue
		}
		if _, err := os.Lstat(disk.Path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		said, err := t.run(ctx, "", "qemu-img", "info", "--output=json", image(alone(disk)))
		if err != nil {
			return nil, err
		}
		var info imageInfo
		if err := json.Unmarshal(said, &info); err != nil {
			return nil, fmt.Errorf("cannot read what qemu-img says of %s: %w", filepath.Base(disk.Path), err)
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

// snapshot makes (-c), removes (-d) or applies (-a) the snapshot of that tag in a disk that no VMM uses.
func (t *tools) snapshot(ctx context.Context, what, tag string, disk vmm.Disk) error {
	return t.qemuImg(ctx, disk.Base, "snapshot", "-q", what, tag, image(disk))
}

func (t *tools) qemuImg(ctx context.Context, base string, args ...string) error {
	_, err := t.run(ctx, base, "qemu-img", args...)
	return err
}

// inherited opens what a program inherits; base may be empty.
func (t *tools) inherited(base string) ([]*os.File, error) {
	dir, err := host.OpenDir(vmm.DisksDir(t.spec.Dir))
	if err != nil || base == "" {
		return []*os.File{dir}, err
	}
	f, err := inheritance{fdBoot, base, os.O_RDONLY}.open(t.spec)
	if err != nil {
		dir.Close()
		return nil, err
	}
	return []*os.File{dir, f}, nil
}

// run runs a program to its end as the VM's user and gives what it said; the error holds what it complained of. It dies with the daemon,
// so that nobody but the next daemon touches the disks then; qemu-img writes in an order in which that loses some space at worst.
func (t *tools) run(ctx context.Context, base, program string, args ...string) ([]byte, error) {
	files, err := t.inherited(base)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "MKE2FS_CONFIG=/dev/null"}
	said, complained := host.Beginning{Most: maxTold}, host.Beginning{Most: maxTold}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &said, &complained, files
	err = host.Confined{UID: t.spec.UID, GID: t.spec.GID}.Run(cmd)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("no %s (install qemu-utils): %w", program, vmm.ErrUnsupported)
	case err != nil && strings.Contains(complained.String(), "No space left on device"):
		err = vmm.ErrNoSpace
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", filepath.Base(program), strings.TrimSpace(complained.String()), err)
	}
	return said.Bytes(), nil
}

// findProgram finds what a user's PATH may lack; empty if it is not there.
func findProgram(name string) string {
	for _, path := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	return ""
}

// node is an entry of query-named-block-nodes, as far as it matters here.
type node struct {
	Name  string    `json:"node-name"`
	Drv   string    `json:"drv"`
	Image imageInfo `json:"image"`
}

// nodes gives QEMU's view of the machine's disks, the protocol's nodes below them left out.
func (m *Machine) nodes(ctx context.Context) ([]node, error) {
	var all []node
	if err := m.call(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &all); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(n node) bool { return n.Name != overlayNode && n.Name != workNode }), nil
}

// action is a TransactionAction of QEMU's schema (qapi/transaction.json).
type action struct {
	Type string            `json:"type"`
	Data map[string]string `json:"data"`
}

// TakeSnapshot implements vmm.Snapshotter with one transaction over the disks: QEMU lets no request of the guest end on any of them between the
// first and the last, and all have it or none.
func (m *Machine) TakeSnapshot(ctx context.Context, tag string) error {
	nodes, err := m.nodes(ctx)
	if err != nil {
		return err
	}
	var actions []action
	for _, n := range nodes {
		if n.Drv != "qcow2" {
			return fmt.Errorf("its disk %s was made by an earlier banger and is converted at its next start: restart it first: %w", n.Name, vmm.ErrUnsupported)
		}
		actions = append(actions, action{"blockdev-snapshot-internal-sync", map[string]string{"device": n.Name, "name": tag}})
	}
	if len(actions) == 0 {
		return fmt.Errorf("it was started without a disk: %w", vmm.ErrUnsupported)
	}
	return noSpace(m.call(ctx, "transaction", map[string]any{"actions": actions}, nil))
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
		if err := m.call(ctx, "blockdev-snapshot-delete-internal-sync", map[string]string{"device": n.Name, "name": tag}, nil); err != nil {
			return noSpace(err)
		}
	}
	return nil
}

// GrowDisk implements vmm.DiskGrower.
func (m *Machine) GrowDisk(ctx context.Context, size int64) error {
	size = (size + sector - 1) / sector * sector
	return noSpace(m.call(ctx, "block_resize", map[string]any{"node-name": workNode, "size": size}, nil))
}

// noSpace finds the want of space in what QEMU says, which has no class for it.
func noSpace(err error) error {
	var refused *qmpError
	if errors.As(err, &refused) && strings.Contains(refused.Error(), "No space left on device") {
		return fmt.Errorf("%w: %v", vmm.ErrNoSpace, err)
	}
	return err
}
