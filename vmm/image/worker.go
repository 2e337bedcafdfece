package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"

	"banger/internal/host"
	"banger/vmm/guest"
	"banger/vmm/image/boot"
	"banger/vmm/image/rootfs"

	"golang.org/x/sys/unix"
)

// workerName is argv[0] of the process that reads layers and writes the root disk.
const workerName = "bangerd-image-build"

// Descriptors of a worker beside stdin, stdout and stderr.
const (
	workerDir   = 3 // the directory for its files
	workerFiles = 4 // the first of the files with layers
)

// Limits of a worker, beside those of the image. Go needs a few threads; mke2fs is one process.
const (
	workerCPU       = 3600 // seconds
	workerProcesses = 64
	workerSpare     = 64 // descriptors that it opens itself
	// A file's node in rootfs with its names needs less memory than this.
	workerPerFile = 2 << 10
	workerMemory  = 768 << 20 // for kernels, modules and decompressors
)

// order is what a worker reads from its stdin.
type order struct {
	Limits  Limits         `json:"limits"`
	Layers  []orderLayer   `json:"layers"` // lowest first
	Program *guest.Program `json:"program,omitempty"`
	OwnUID  bool           `json:"own_uid"` // the worker's processes alone have its uid
}

// orderLayer is a part of one of the worker's files.
type orderLayer struct {
	File   int    `json:"file"`
	At     int64  `json:"at"`
	Size   int64  `json:"size"`
	Digest string `json:"digest,omitempty"`
	DiffID string `json:"diff_id,omitempty"`
}

// outcome is a line that a worker writes to its stdout. A line is progress unless Done or Error is
// set.
type outcome struct {
	Progress float64 `json:"progress,omitempty"`
	Error    string  `json:"error,omitempty"`
	Damaged  *int    `json:"damaged,omitempty"` // the layer that lacks its digest
	Done     bool    `json:"done,omitempty"`

	// Of one that is done:
	Program bool `json:"program,omitempty"` // the program of the order runs, no init
	boot.Made
}

// IsWorker reports whether a Set has started this process to build an image. Such a process calls
// Work and nothing else.
func IsWorker() bool { return os.Args[0] == workerName }

// Work builds the root disk of one image and returns the exit status of the process. The process
// gets the layers and the directory for the result as descriptors.
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
	var damaged *rootfs.DamagedError
	if errors.As(err, &damaged) {
		done.Damaged = &damaged.Layer
	}
	return done, err
}

// memory returns how many bytes a worker may use.
func (o *order) memory() int64 { return workerMemory + workerPerFile*int64(o.Limits.Files) }

// confine sets the limits of this process, which its own processes inherit.
func (o *order) confine() error {
	files := workerFiles
	for _, l := range o.Layers {
		files = max(files, workerFiles+l.File+1)
	}
	debug.SetMemoryLimit(o.memory() / 2)
	limits := map[int]uint64{
		unix.RLIMIT_CORE:   0,
		unix.RLIMIT_CPU:    workerCPU,
		unix.RLIMIT_FSIZE:  uint64(o.Limits.MaxDisk()),
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

// dataSize returns what RLIMIT_DATA counts of this process already, which is much with the race
// detector.
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

// layers returns the layers of the order, which are parts of the process's files.
func (o *order) layers() []*rootfs.Layer {
	var all []*rootfs.Layer
	for _, l := range o.Layers {
		file := os.NewFile(uintptr(workerFiles+l.File), "layer")
		open := func() (io.ReadCloser, error) {
			return rootfs.NewPiece(file, l.At, l.Size, false), nil
		}
		all = append(all,
			&rootfs.Layer{Size: l.Size, Digest: l.Digest, DiffID: l.DiffID, Open: open})
	}
	return all
}

// makeRoot makes in dir the root disk and the files that boot it. progress goes from 0 to 1.
func (o *order) makeRoot(ctx context.Context, dir string, progress func(float64)) (outcome, error) {
	r, err := rootfs.Read(ctx, o.layers(), o.Limits, func(f float64) { progress(0.4 * f) })
	if err != nil {
		return outcome{}, err
	}
	program := o.Program
	if program != nil { // an image with an init has volumes, too
		if err := r.MakeVolumes(program.Volumes); err != nil {
			return outcome{}, err
		}
	}
	if program != nil && len(program.Args) > 0 && rootfs.IsInit(program.Args[0]) && r.HasInit() {
		program = nil
	}
	if program != nil && len(program.Args) == 0 {
		program = nil
	}
	if program == nil && !r.HasInit() {
		return outcome{}, errors.New("it has no /sbin/init and names nothing else to run")
	}
	k := boot.FindKernel(r)
	name := filepath.Join(dir, rootName)
	if err := r.Write(ctx, name, func(f float64) { progress(0.4 + 0.6*f) }); err != nil {
		return outcome{}, err
	}
	made, err := boot.Write(dir, k, program)
	if err != nil {
		return outcome{}, err
	}
	return outcome{Done: true, Program: program != nil, Made: made}, nil
}
