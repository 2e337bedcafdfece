package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"banger/internal/host"
	"banger/vmm"

	"golang.org/x/sys/unix"
)

// Of disks made elsewhere.
const (
	diskRecipe = "disk 1"  // part of the key: it changes when the same disk would become another image
	diskMemory = 512 << 20 // the least with which a distribution's cloud image is of use, bytes
	diskLimit  = 1 << 40   // of what a guest sees, bytes
)

// Limits of qemu-img, which reads what a user made: address space in KiB and seconds of a CPU. A large disk is read and
// written in much less.
const (
	convertMemory = 2 << 20
	convertCPU    = 3600
)

// convertTime is how long qemu-img may take in all.
const convertTime = 2 * time.Hour

// planDisk takes a disk that boots by itself. It is copied first, by this process, which alone has the right to read it: what is
// then looked at cannot be changed by who owns the original. A raw disk's copy is the image's; a qcow2 goes through qemu-img.
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
	sum, err := copyDisk(ctx, out, j.local.file, j.set.o.Limits.Bytes, func(done float64) { j.progress(done / 2) })
	if err != nil {
		return err
	}
	format, err := diskFormat(out, j.source.arg)
	if err != nil {
		return err
	}
	p.key = digest([]byte(diskRecipe), []byte(format), []byte(sum))
	p.make = func(ctx context.Context, dir string) (*manifest, error) {
		m := &manifest{Firmware: true, Root: "root." + format, RootFormat: format, Memory: diskMemory, Digest: "sha256:" + sum}
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

// copyDisk copies src without its zeros, and gives the SHA-256 of all of it. More than limit bytes that are not zeros are refused.
func copyDisk(ctx context.Context, dst, src *os.File, limit int64, progress func(float64)) (sum string, err error) {
	fi, err := src.Stat()
	if err != nil {
		return "", err
	}
	size := fi.Size()
	if size == 0 || size > diskLimit {
		return "", fmt.Errorf("it has %d bytes; a disk has 1 to %d", size, int64(diskLimit))
	}
	h := sha256.New()
	read := int64(0)
	from := host.NewReader(ctx, io.NewSectionReader(src, 0, size), func(n int) {
		read += int64(n)
		progress(float64(read) / float64(size))
	})
	n, err := host.CopySparse(ctx, dst, io.TeeReader(from, h), host.Limit{Stored: limit})
	switch {
	case errors.Is(err, host.ErrTooMuch):
		return "", fmt.Errorf("it holds more than %d bytes (image_max_size)", limit)
	case err != nil:
		return "", err
	case n != size:
		return "", errors.New("it was changed while it was read")
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// diskFormat says whether a disk is raw or qcow2: as its name says, else as it begins. A qcow2 that leads to other files is refused
// here, before any program sees it (docs/interop/qcow2.txt of QEMU, "Header").
func diskFormat(f *os.File, name string) (string, error) {
	var head [104]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	is := bytes.HasPrefix(head[:], []byte("QFI\xfb"))
	switch ext := strings.ToLower(path.Ext(name)); {
	case ext == ".raw" || ext != ".qcow2" && !is:
		return "raw", nil
	case !is:
		return "", errors.New("its name ends in .qcow2, but it is none")
	}
	order := binary.BigEndian
	version, features := order.Uint32(head[4:]), uint64(0)
	if version >= 3 {
		features = order.Uint64(head[72:])
	}
	const dataFile = 1 << 2
	switch {
	case n < 72 || version != 2 && version != 3 || version == 3 && n < len(head):
		return "", errors.New("it is a damaged qcow2, or one of a version that is not known")
	case order.Uint64(head[8:]) != 0:
		return "", errors.New("it is an overlay of another disk; make one that stands alone: qemu-img convert -O qcow2")
	case features&dataFile != 0:
		return "", errors.New("it keeps its data in another file; make one that stands alone: qemu-img convert -O qcow2")
	case order.Uint32(head[32:]) != 0:
		return "", errors.New("it is encrypted")
	case order.Uint64(head[24:]) > diskLimit:
		return "", fmt.Errorf("the guest would see more than %d bytes of it", int64(diskLimit))
	}
	return "qcow2", nil
}

// convert makes a plain qcow2 of the copied one in dir. qemu-img runs with limits and, where the
// daemon is root, with a uid of its own, which owns nothing but a directory in dir; it dies with
// the daemon.
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

// qemuConvert runs qemu-img in work. That is its working directory from the start: its uid may
// enter none above.
func (j *job) qemuConvert(ctx context.Context, user *vmm.Job, work string) error {
	dir, err := os.Open(work)
	if err != nil {
		return err
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(ctx, convertTime)
	defer cancel()
	// ulimit -f counts 512 bytes in dash and 1024 in bash's sh; it is the coarser guard, settle has the exact one.
	limits := fmt.Sprintf(`cd /proc/self/fd/3 || exit; exec 3<&-
ulimit -c 0; ulimit -v %d; ulimit -t %d; ulimit -f %d; exec qemu-img "$@"`,
		convertMemory, convertCPU, j.set.o.Limits.Bytes/512+1)
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", limits, "sh",
		"convert", "-p", "-f", "qcow2", "-O", "qcow2", "disk", "converted")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.ExtraFiles, cmd.WaitDelay = []*os.File{dir}, time.Second
	said := host.Beginning{Most: firstWords}
	cmd.Stdout, cmd.Stderr = percents(func(p float64) { j.progress(0.5 + p/200) }), &said
	confined := host.Confined{UID: user.UID, GID: user.UID, Nice: niceness}
	if err := confined.Run(cmd); err != nil {
		if e := ctx.Err(); e != nil {
			return e
		}
		if strings.Contains(said.String(), syscall.ENOSPC.Error()) || strings.Contains(said.String(), "No space left") {
			return syscall.ENOSPC
		}
		return fmt.Errorf("qemu-img cannot read it (%w): %s", err, host.OneLine(said.Bytes()))
	}
	return nil
}

// firstWords is how many bytes are kept of what a program complains of.
const firstWords = 4096

// percents is a writer for the progress that qemu-img prints, "    (12.50/100%)\r".
type percents func(float64)

func (f percents) Write(p []byte) (int, error) {
	_, s, _ := strings.Cut(string(p[max(0, bytes.LastIndexByte(p, '(')):]), "(")
	s, _, _ = strings.Cut(s, "/")
	if done, err := strconv.ParseFloat(s, 64); err == nil && done >= 0 && done <= 100 {
		f(done)
	}
	return len(p), nil
}

// settle makes a finished disk the daemon's own and readable for VMMs, and gives the bytes that it takes. It was written in a
// directory of another user, who has no process any more.
func settle(name string, limit int64) (int64, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		switch size := st.Blocks * 512; {
		case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1:
			err = errors.New("what qemu-img made is no file of its own")
		case size > limit:
			err = fmt.Errorf("it holds %d bytes; %d are allowed (image_max_size)", size, limit)
		}
	}
	if err == nil {
		err = f.Chown(os.Getuid(), os.Getgid())
	}
	if err != nil {
		f.Close()
		return 0, err
	}
	return st.Blocks * 512, host.CloseSynced(f)
}
