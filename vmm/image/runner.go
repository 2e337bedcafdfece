package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/internal/host"
	"banger/vmm"
	"banger/vmm/image/boot"

	"golang.org/x/sys/unix"
)

// Layers are read by a process of its own (worker.go), which has no rights, little memory, and
// nothing of the host but the descriptors that it is given. All that comes back from it may be a
// stranger's.

const (
	workerTime = 2 * time.Hour
	workerSaid = 1 << 20 // bytes of its stdout
)

// rootMost is the longest root disk, in bytes.
func rootMost(l Limits) int64 {
	return max(leastRoot, (l.Bytes+int64(l.Files)*2*blockSize)*17/16+freeRoot)
}

// makeRoot makes the root disk of layers and all that boots it in dir. program is nil where the
// root's own init runs. progress goes from begin to 1.
func (j *job) makeRoot(ctx context.Context, dir string, layers []*layer, program *vmm.Program,
	begin float64) (_ *manifest, err error) {
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
		j.set.o.Log.Warn("the image's own kernel cannot be used, the built-in one is",
			"image", j.item.name, "err", done.Warning)
	}
	m := &manifest{Extra: boot.ExtraName, Memory: initMemory, Root: rootName, RootFormat: "raw"}
	if done.Program {
		m.Memory = programMemory
	}
	m.Kernel = done.KernelName()
	m.OwnKernel = m.Kernel != ""
	// Nobody writes to them any more.
	if err := errors.Join(user.Kill(), os.Chown(work, os.Getuid(), os.Getgid())); err != nil {
		return nil, err
	}
	most := map[string]int64{
		m.Root: rootMost(j.set.o.Limits), m.Extra: boot.ExtraLimit, m.Kernel: boot.KernelLimit}
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
func (j *job) runWorker(ctx context.Context, user *vmm.Job, work string, layers []*layer,
	program *vmm.Program, progress func(float64)) (*outcome, error) {
	o := order{Limits: j.set.o.Limits, Program: program, OwnUID: user.UID >= 0}
	out, err := os.Open(work)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	files := []*os.File{out}
	for _, l := range layers {
		r, err := l.open()
		if err != nil {
			return nil, err
		}
		defer r.Close()
		p, ok := r.(*piece)
		if !ok {
			return nil, errors.New("a layer is no part of a file")
		}
		if len(files) == 1 || files[len(files)-1] != p.file {
			files = append(files, p.file)
		}
		o.Layers = append(o.Layers, orderLayer{len(files) - 2, p.at, p.Size(), l.digest, l.diffID})
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
		// All that it starts ends with it, and it reaches no network.
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	listener := &outcomes{progress: progress, end: cancel}
	said := host.Beginning{Most: firstWords}
	cmd.Stdout, cmd.Stderr = listener, &said
	err = host.Confined{UID: user.UID, GID: user.UID, Nice: niceness}.Run(cmd)
	switch last := listener.last; {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, fmt.Errorf("the build did not end within %v", workerTime)
	case listener.err != nil:
		return nil, listener.err
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case noMemory(said.String()):
		return nil, fmt.Errorf("its files need more than %d MiB of memory, see image_max_files",
			o.memory()>>20)
	case err != nil:
		return nil, fmt.Errorf("the build ended early (%w): %s", err, host.OneLine(said.Bytes()))
	case last == nil:
		return nil, errors.New("the build ended without a word")
	case last.Error != "":
		if i := last.Damaged; i != nil && *i >= 0 && *i < len(layers) && layers[*i].damaged != nil {
			layers[*i].damaged()
		}
		return nil, errors.New(host.OneLine([]byte(last.Error)))
	default:
		return last, nil
	}
}

// noMemory finds the end of a program of Go that got no more memory in what it said.
func noMemory(said string) bool {
	return strings.Contains(said, "out of memory") || strings.Contains(said, "cannot allocate memory")
}

// outcomes reads the lines of a worker as they come. What is no line of its kind, or too much, ends
// it.
type outcomes struct {
	progress func(float64)
	end      func()
	total    int
	line     []byte
	last     *outcome // with an error, or done
	err      error
}

func (l *outcomes) Write(p []byte) (int, error) {
	if l.total += len(p); l.total > workerSaid && l.err == nil {
		l.fail(errors.New("the build says too much"))
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
			l.fail(fmt.Errorf("the build says what nobody understands: %w", err))
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

// piece is a part of a file, which can be given to another process.
type piece struct {
	*io.SectionReader
	file *os.File
	at   int64
	own  bool // closed with the piece
}

func newPiece(file *os.File, at, size int64, own bool) *piece {
	return &piece{io.NewSectionReader(file, at, size), file, at, own}
}

func (p *piece) Close() error {
	if p.own {
		return p.file.Close()
	}
	return nil
}
