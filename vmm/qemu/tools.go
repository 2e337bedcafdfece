package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"banger/internal/host"
	"banger/vmm"
)

// All programs that read or write a disk run as the VM's user, who owns the disks' directory. A VMM
// that its guest took over may leave anything there, and these programs have no more rights than
// that VMM had. They inherit the directory and the base, for no VM's user enters the state
// directory. No format is ever guessed: a guest may write the beginning of any format on a raw
// disk. No path in a disk's header is followed.

// maxOutput bounds the output of a program, bytes.
const maxOutput = 4 << 20

// Numbers of the descriptors that a program inherits: the directory of the disks and, where there
// is one, the base of the disk that it works on.
const (
	toolDir  = firstFD
	toolBase = firstFD + 1
)

// toolPath returns the name of a file of the disks' directory to a program.
func toolPath(path string) string { return selfFD(toolDir) + "/" + filepath.Base(path) }

// toolImage returns the name of a disk to qemu-img, with its format and its base's.
func toolImage(d vmm.Disk) string {
	var base any
	if d.Base != "" {
		base = baseNode(d, "", selfFD(toolBase))
	}
	return "json:" + string(mustJSON(diskNode(d, "", toolPath(d.Path), base)))
}

// alone returns a disk without its base, for programs that work on the disk's own file only.
func alone(d vmm.Disk) vmm.Disk {
	d.Base, d.BaseFormat = "", ""
	return d
}

// tools run programs on the disks of one VM.
type tools struct{ spec *vmm.Spec }

func newTools(spec *vmm.Spec) (*tools, error) {
	spec, err := absolute(spec)
	return &tools{spec}, err
}

// eachDisk calls do for each disk of a VM, until the first error.
func eachDisk(
	ctx context.Context, spec *vmm.Spec, do func(*tools, context.Context, vmm.Disk) error,
) error {
	t, err := newTools(spec)
	if err != nil {
		return err
	}
	for _, disk := range t.spec.Disks {
		if err := do(t, ctx, disk); err != nil {
			return err
		}
	}
	return nil
}

func (t *tools) logf(format string, args ...any) {
	if t.spec.Log != nil {
		fmt.Fprintf(t.spec.Log, "banger: "+format+"\n", args...)
	}
}

// qemuImg runs qemu-img(1). base is the path of the base that the program inherits, empty for none.
func (t *tools) qemuImg(ctx context.Context, base string, args ...string) error {
	_, err := t.run(ctx, base, "qemu-img", args...)
	return err
}

// inherited opens the descriptors that a program inherits; base may be empty.
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

// run runs a program as the VM's user and returns its output. It blocks until the program has
// ended. The error holds what the program wrote to stderr. The program dies with the daemon, so
// that only the next daemon touches the disks then. qemu-img writes in an order in which that loses
// some space at worst.
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
	output, complaint := host.Beginning{Most: maxOutput}, host.Beginning{Most: maxOutput}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &output, &complaint, files
	bounds := host.Program(t.spec.UID, largestFile(t.spec, t.spec.Snapshots+1))
	err = host.Confined{UID: t.spec.UID, GID: t.spec.GID, Bounds: bounds}.Run(cmd)
	why := strings.TrimSpace(complaint.String())
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("no %s (install qemu-utils): %w", program, vmm.ErrUnsupported)
	case err != nil && strings.Contains(why, noSpaceText):
		err = vmm.ErrNoSpace
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", filepath.Base(program), why, err)
	}
	return output.Bytes(), nil
}

// noSpaceText is strerror(ENOSPC), which QEMU and its tools print.
const noSpaceText = "No space left on device"

// noSpace turns a refusal by QEMU for want of space into vmm.ErrNoSpace; QMP has no class for it.
func noSpace(err error) error {
	var refused *qmpError
	if errors.As(err, &refused) && strings.Contains(refused.Error(), noSpaceText) {
		return fmt.Errorf("%w: %v", vmm.ErrNoSpace, err)
	}
	return err
}
