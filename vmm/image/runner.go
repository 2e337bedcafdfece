package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/internal/host"
	"banger/vmm/guest"
	"banger/vmm/image/boot"
	"banger/vmm/image/rootfs"

	"golang.org/x/sys/unix"
)

// A process of its own (worker.go) reads layers. It has no rights, little memory, and nothing of
// the host but the descriptors that it gets. A layer may have taken it over, so its output and its
// files are checked like a stranger's.

const (
	workerTime   = 2 * time.Hour
	workerOutput = 1 << 20 // bytes of its stdout
)

// rootName is the file of an image with its root disk, which has no partitions.
const rootName = "root.img"

// makeRoot makes in dir the root disk of layers and the files that boot it. program is nil where
// the root's own init runs. The progress goes from begin to 1.
func (j *job) makeRoot(ctx context.Context, dir string, layers []*rootfs.Layer,
	program *guest.Program, begin float64) (_ *manifest, err error) {
	user, err := j.set.o.Jobs.Begin()
	if err != nil {
		return nil, err
	}
	parent := j.set.path(blobsName, builtName)
	work, err := os.MkdirTemp(parent, ".work-")
	if err != nil {
		return nil, errors.Join(err, user.End())
	}
	defer func() { err = errors.Join(err, user.Kill(), os.RemoveAll(work), user.End()) }()
	if err := os.Chown(work, user.UID, user.UID); err != nil {
		return nil, err
	}
	progress := func(f float64) { j.progress(begin + (1-begin)*f) }
	done, err := j.runWorker(ctx, user, work, layers, program, progress)
	if err != nil {
		return nil, err
	}
	if done.Warning != "" {
		j.set.o.Log.Warn("using the built-in kernel, because the image's own cannot be used",
			"image", j.item.name, "err", done.Warning)
	}
	m := &manifest{Extra: boot.ExtraName, Memory: initMemory, Root: rootName, RootFormat: "raw"}
	if done.Program {
		m.Memory = programMemory
	}
	m.Kernel = done.KernelName()
	m.OwnKernel = m.Kernel != ""
	// From here on no other process can write to the files.
	if err := errors.Join(user.Kill(), os.Chown(work, os.Getuid(), os.Getgid())); err != nil {
		return nil, err
	}
	most := map[string]int64{
		m.Root: j.set.o.Limits.MaxDisk(), m.Extra: boot.ExtraLimit, m.Kernel: boot.KernelLimit}
	for _, name := range m.files() {
		from := filepath.Join(work, name)
		if _, err := settle(from, most[name]); err != nil {
			return nil, err
		}
		if err := os.Rename(from, filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// runWorker runs a worker to its end.
func (j *job) runWorker(ctx context.Context, user *host.Job, work string, layers []*rootfs.Layer,
	program *guest.Program, progress func(float64)) (*outcome, error) {
	o := order{Limits: j.set.o.Limits, Program: program, OwnUID: user.UID >= 0}
	out, err := os.Open(work)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	files := []*os.File{out}
	for _, l := range layers {
		r, err := l.Open()
		if err != nil {
			return nil, err
		}
		defer r.Close()
		p, ok := r.(*rootfs.Piece)
		if !ok {
			return nil, errors.New("a layer is no part of a file")
		}
		if len(files) == 1 || files[len(files)-1] != p.File {
			files = append(files, p.File)
		}
		o.Layers = append(o.Layers,
			orderLayer{len(files) - 2, p.Start, p.Size(), l.Digest, l.DiffID})
	}
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, workerTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{workerName}
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "GOTRACEBACK=none",
		"MKE2FS_CONFIG=/dev/null"}
	cmd.Stdin, cmd.ExtraFiles = bytes.NewReader(text), files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if user.UID >= 0 {
		// Its own processes end with it, and it reaches no network.
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	listener := &outcomes{progress: progress, end: cancel}
	messages := host.Beginning{Most: messageLimit}
	cmd.Stdout, cmd.Stderr = listener, &messages
	// It sets its other limits itself.
	err = host.Confined{UID: user.UID, GID: user.UID, Nice: niceness,
		Bounds: host.Bounds{OOM: host.OOMProgram}}.Run(cmd)
	switch last := listener.last; {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, fmt.Errorf("the build did not end within %v", workerTime)
	case listener.err != nil:
		return nil, listener.err
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case noMemory(messages.String()):
		return nil, fmt.Errorf("its files need more than %d MiB of memory, see image_max_files",
			o.memory()>>20)
	case err != nil:
		return nil, fmt.Errorf("the build ended early (%w): %s", err, host.OneLine(messages.Bytes()))
	case last == nil:
		return nil, errors.New("the build ended without a result")
	case last.Error != "":
		if i := last.Damaged; i != nil && *i >= 0 && *i < len(layers) && layers[*i].Damaged != nil {
			layers[*i].Damaged()
		}
		return nil, errors.New(host.OneLine([]byte(last.Error)))
	default:
		return last, nil
	}
}

// noMemory reports whether the messages of a Go program show that it ran out of memory.
func noMemory(messages string) bool {
	return strings.Contains(messages, "out of memory") ||
		strings.Contains(messages, "cannot allocate memory")
}

// outcomes reads the output of a worker. It ends the worker at a line of another kind, or after too
// many bytes.
type outcomes struct {
	progress func(float64)
	end      func()
	total    int
	line     []byte
	last     *outcome // with an error, or done
	err      error
}

func (l *outcomes) Write(p []byte) (int, error) {
	if l.total += len(p); l.total > workerOutput && l.err == nil {
		l.fail(errors.New("the build prints too much"))
	}
	if l.err != nil {
		return len(p), nil
	}
	l.line = append(l.line, p...)
	for {
		line, rest, whole := bytes.Cut(l.line, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		l.line = rest
		var o outcome
		err := json.Unmarshal(line, &o)
		switch {
		case err != nil:
			l.fail(fmt.Errorf("the build prints lines that cannot be read: %w", err))
			return len(p), nil
		case o.Done, o.Error != "":
			l.last = &o
		case o.Progress >= 0 && o.Progress <= 1:
			l.progress(o.Progress)
		}
	}
}

func (l *outcomes) fail(err error) {
	l.err, l.line = err, nil
	l.end()
}

// settle makes a finished file the daemon's own and readable for VMMs, and returns the bytes that
// it occupies. Another uid, which has no process any more, wrote it in its own directory.
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
			err = errors.New("the build made something else than a file")
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
