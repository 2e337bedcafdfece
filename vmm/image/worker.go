package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"

	"banger/internal/host"
	"banger/vmm"
	"banger/vmm/image/boot"

	"golang.org/x/sys/unix"
)

// workerName is argv[0] of the process that reads layers and writes the root disk.
const workerName = "bangerd-image-build"

// Descriptors of a worker beside stdin, stdout and stderr.
const (
	workerDir   = 3 // the directory that it writes to
	workerFiles = 4 // the first of the files with layers
)

// Limits of a worker, beside those of the image. Go needs a few threads; mke2fs is one process.
const (
	workerCPU       = 3600 // seconds
	workerProcesses = 64
	workerSpare     = 64 // descriptors beside those that it is given
	// A node of a tree with its names takes less than this, see treeText.
	workerPerFile = 2 << 10
	workerMemory  = 768 << 20 // for kernels, modules and decompressors
)

// order is what a worker reads from its stdin.
type order struct {
	Limits  Limits       `json:"limits"`
	Layers  []orderLayer `json:"layers"` // lowest first
	Program *vmm.Program `json:"program,omitempty"`
	OwnUID  bool         `json:"own_uid"` // nobody else's processes count with the worker's
}

// orderLayer is a part of a file that the worker was given.
type orderLayer struct {
	File   int    `json:"file"`
	At     int64  `json:"at"`
	Size   int64  `json:"size"`
	Digest string `json:"digest,omitempty"`
	DiffID string `json:"diff_id,omitempty"`
}

// outcome is a line that a worker writes to its stdout. What is not Done or an Error is progress.
type outcome struct {
	Progress float64 `json:"progress,omitempty"`
	Error    string  `json:"error,omitempty"`
	Damaged  *int    `json:"damaged,omitempty"` // the layer that has not its digest
	Done     bool    `json:"done,omitempty"`

	// Of one that is done:
	Program bool `json:"program,omitempty"` // the program of the order runs, no init
	boot.Made
}

// IsWorker reports whether this process was started by a Set to build an image. A program that
// builds images calls Work then and nothing else.
func IsWorker() bool { return os.Args[0] == workerName }

// Work builds one image's root disk and returns the exit status of the process. Its input, layers
// of strangers, comes by descriptors. What it makes goes to a directory that it was given.
func Work() int {
	tell := json.NewEncoder(os.Stdout)
	done, err := work(os.Stdin, func(f float64) { _ = tell.Encode(outcome{Progress: f}) })
	if err != nil {
		done.Error = host.OneLine([]byte(err.Error()))
	}
	if err := tell.Encode(done); err != nil {
		return 1
	}
	return 0
}

func work(orders io.Reader, tell func(float64)) (outcome, error) {
	var o order
	if err := json.NewDecoder(orders).Decode(&o); err != nil {
		return outcome{}, fmt.Errorf("cannot read the order: %w", err)
	}
	if err := o.confine(); err != nil {
		return outcome{}, fmt.Errorf("cannot limit the build: %w", err)
	}
	if err := unix.Fchdir(workerDir); err != nil {
		return outcome{}, err
	}
	told := 0.0
	done, err := o.makeRoot(context.Background(), ".", func(progress float64) {
		if progress >= told+0.01 {
			told = progress
			tell(progress)
		}
	})
	var damaged *damagedLayer
	if errors.As(err, &damaged) {
		done.Damaged = &damaged.index
	}
	return done, err
}

// memory is how many bytes a worker may use.
func (o *order) memory() int64 { return workerMemory + workerPerFile*int64(o.Limits.Files) }

// confine sets the limits of this process and of those that it starts.
func (o *order) confine() error {
	files := workerFiles
	for _, l := range o.Layers {
		files = max(files, workerFiles+l.File+1)
	}
	debug.SetMemoryLimit(o.memory() / 2)
	limits := map[int]uint64{
		unix.RLIMIT_CORE:   0,
		unix.RLIMIT_CPU:    workerCPU,
		unix.RLIMIT_FSIZE:  uint64(rootMost(o.Limits)),
		unix.RLIMIT_NOFILE: uint64(files + workerSpare),
		unix.RLIMIT_DATA:   dataSize() + uint64(o.memory()),
	}
	if o.OwnUID {
		limits[unix.RLIMIT_NPROC] = workerProcesses
	}
	for which, limit := range limits {
		if err := unix.Setrlimit(which, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return err
		}
	}
	return nil
}

// dataSize is what RLIMIT_DATA counts of this process already: much, with the race detector.
func dataSize() uint64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(text, []byte("\nVmData:"))
	fields := bytes.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	kib, err := strconv.ParseUint(string(fields[0]), 10, 54)
	if err != nil {
		return 0
	}
	return kib << 10
}

// layers are those of the order, of the files that the process was given.
func (o *order) layers() []*layer {
	var all []*layer
	for _, l := range o.Layers {
		file := os.NewFile(uintptr(workerFiles+l.File), "layer")
		all = append(all, &layer{size: l.Size, digest: l.Digest, diffID: l.DiffID,
			open: func() (io.ReadCloser, error) { return newPiece(file, l.At, l.Size, false), nil }})
	}
	return all
}

// makeRoot makes the root disk and all that boots it in dir. progress goes from 0 to 1.
func (o *order) makeRoot(ctx context.Context, dir string, progress func(float64)) (outcome, error) {
	r, err := scan(ctx, o.layers(), o.Limits, func(f float64) { progress(0.4 * f) })
	if err != nil {
		return outcome{}, err
	}
	program := o.Program
	if program != nil && len(program.Args) > 0 && isInit(program.Args[0]) && r.hasInit() {
		program = nil
	}
	if program != nil && len(program.Args) == 0 {
		program = nil
	}
	if program == nil && !r.hasInit() {
		return outcome{}, errors.New("it has no /sbin/init and names nothing else to run")
	}
	k := boot.FindKernel(r)
	if err := r.write(ctx, dir, func(f float64) { progress(0.4 + 0.6*f) }); err != nil {
		return outcome{}, err
	}
	made, err := boot.Write(dir, k, program)
	if err != nil {
		return outcome{}, err
	}
	return outcome{Done: true, Program: program != nil, Made: made}, nil
}
