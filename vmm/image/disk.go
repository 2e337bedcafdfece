package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"banger/internal/host"
	"banger/vmm"
	"banger/vmm/image/rootfs"
)

// diskRecipe is part of the key of each build of a disk. It changes whenever the same disk makes
// another image.
const diskRecipe = "disk 1"

// diskMemory is the least memory in which a distribution's cloud image is of use, in bytes.
const diskMemory = 512 << 20

// Limits of qemu-img, which reads a user's disk: address space in KiB and seconds of a CPU. Large
// disks need much less.
const (
	convertMemory = 2 << 20
	convertCPU    = 3600
)

// convertTime bounds the whole run of qemu-img.
const convertTime = 2 * time.Hour

// planDisk plans the build of a disk that boots by itself. This process, which alone may read the
// disk, copies it first: its owner cannot change the copy after that has been checked. The copy of
// a raw disk becomes the image's; qemu-img converts that of a qcow2.
func planDisk(ctx context.Context, j *job) (*plan, error) {
	if j.local.dir {
		return nil, fmt.Errorf("%.200q is a directory, not a disk", j.source.arg)
	}
	parent := j.set.path(blobsName, builtName)
	if err := host.MakeDirs(parent, 0o755); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(parent, ".disk-")
	if err != nil {
		return nil, err
	}
	p := &plan{done: func() { os.RemoveAll(tmp) }}
	if err := planDiskIn(ctx, j, p, tmp); err != nil {
		p.done()
		return nil, err
	}
	return p, nil
}

func planDiskIn(ctx context.Context, j *job, p *plan, tmp string) error {
	disk := filepath.Join(tmp, "disk")
	out, err := os.OpenFile(disk, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	progress := func(read, size int64) {
		j.step(float64(read)/float64(size)/2, vmm.Moved{Bytes: read, Total: size})
	}
	sum, err := rootfs.CopyDisk(ctx, out, j.local.file, j.set.o.Limits.Bytes, progress)
	if err != nil {
		return err
	}
	format, err := rootfs.DiskFormat(out, j.source.arg)
	if err != nil {
		return err
	}
	p.key = digest([]byte(diskRecipe), []byte(format), []byte(sum))
	p.make = func(ctx context.Context, dir string) (*manifest, error) {
		m := &manifest{Firmware: true, Root: "root." + format, RootFormat: format,
			Memory: diskMemory, Digest: "sha256:" + sum}
		if format == "qcow2" {
			if disk, err = j.convert(ctx, tmp); err != nil {
				return nil, err
			}
		}
		root := filepath.Join(dir, m.Root)
		if err := os.Rename(disk, root); err != nil {
			return nil, err
		}
		m.Size, err = settle(root, j.set.o.Limits.Bytes)
		return m, err
	}
	return nil
}

// convert makes a plain qcow2 of the copy in dir. qemu-img has limits and, where the daemon is
// root, a uid of its own, which owns nothing but a directory in dir. It ends with the daemon.
func (j *job) convert(ctx context.Context, dir string) (_ string, err error) {
	user, err := j.set.o.Jobs.Begin()
	if err != nil {
		return "", err
	}
	work := filepath.Join(dir, "work")
	defer func() { err = errors.Join(err, user.Kill(), os.RemoveAll(work), user.End()) }()
	from, to := filepath.Join(work, "disk"), filepath.Join(work, "converted")
	err = errors.Join(os.Mkdir(work, 0o700), os.Rename(filepath.Join(dir, "disk"), from))
	if err != nil {
		return "", err
	}
	for _, name := range []string{work, from} {
		if err := os.Chown(name, user.UID, user.UID); err != nil {
			return "", err
		}
	}
	if err := j.qemuConvert(ctx, user, work); err != nil {
		return "", err
	}
	if err := user.Kill(); err != nil {
		return "", err
	}
	done := filepath.Join(dir, "converted")
	if _, err := settle(to, j.set.o.Limits.Bytes); err != nil {
		return "", err
	}
	return done, os.Rename(to, done)
}

// qemuConvert runs qemu-img in work. It starts there, because its uid may enter no directory above.
func (j *job) qemuConvert(ctx context.Context, user *host.Job, work string) error {
	dir, err := os.Open(work)
	if err != nil {
		return err
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(ctx, convertTime)
	defer cancel()
	// ulimit -f counts 512 bytes in dash and 1024 in bash's sh. settle has the exact limit.
	limits := fmt.Sprintf(`cd /proc/self/fd/3 || exit; exec 3<&-
ulimit -c 0; ulimit -v %d; ulimit -t %d; ulimit -f %d; exec qemu-img "$@"`,
		convertMemory, convertCPU, j.set.o.Limits.Bytes/512+1)
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", limits, "sh",
		"convert", "-p", "-f", "qcow2", "-O", "qcow2", "disk", "converted")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.ExtraFiles, cmd.WaitDelay = []*os.File{dir}, time.Second
	messages := host.Beginning{Most: messageLimit}
	progress := percents(func(p float64) { j.progress(0.5 + p/200) })
	cmd.Stdout, cmd.Stderr = progress, &messages
	confined := host.Confined{UID: user.UID, GID: user.UID, Nice: niceness,
		Bounds: host.Program(user.UID, uint64(j.set.o.Limits.Bytes))}
	if err := confined.Run(cmd); err != nil {
		if e := ctx.Err(); e != nil {
			return e
		}
		if strings.Contains(strings.ToLower(messages.String()), syscall.ENOSPC.Error()) {
			return syscall.ENOSPC
		}
		return fmt.Errorf("qemu-img cannot read it (%w): %s", err, host.OneLine(messages.Bytes()))
	}
	return nil
}

// messageLimit bounds the error output of a program that is kept, in bytes.
const messageLimit = 4096

// percents is called with the progress that qemu-img prints, "    (12.50/100%)\r".
type percents func(float64)

func (f percents) Write(p []byte) (int, error) {
	_, s, _ := strings.Cut(string(p[max(0, bytes.LastIndexByte(p, '(')):]), "(")
	s, _, _ = strings.Cut(s, "/")
	if done, err := strconv.ParseFloat(s, 64); err == nil && done >= 0 && done <= 100 {
		f(done)
	}
	return len(p), nil
}
