package fake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/host"
	"banger/vmm"
)

const stateFile = "fake.json"

// Driver makes fake machines.
type Driver struct {
	vmm.BaseDriver
	process vmm.Process
}

// New makes the driver; its machines carry the calling process's pid.
func New() *Driver {
	return &Driver{
		vmm.BaseDriver{Can: vmm.Capabilities{Name: "fake", Accel: "fake", Lacks: map[vmm.Feature]string{
			vmm.FeatureBridge:   "a fake machine has no network",
			vmm.FeatureConfined: "a fake machine is a part of the daemon",
			vmm.FeaturePower:    "a fake machine has no power button",
		}, Overhead: 128 << 20}},
		vmm.Process{PID: os.Getpid(), StartTime: startTime()},
	}
}

// startTime is when this process was started, 0 if that cannot be read.
func startTime() uint64 {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0
	}
	return host.StartTime(stat)
}

// Start implements vmm.Driver; it takes the script's boot time.
func (d *Driver) Start(
	ctx context.Context, spec *vmm.Spec, notify func(vmm.Notice),
) (vmm.Machine, error) {
	s, err := parseScript(spec.Config.Cmdline)
	if err != nil {
		return nil, err
	}
	if s.boot > 0 {
		boot := time.NewTimer(s.boot)
		defer boot.Stop()
		select {
		case <-boot.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.failStart {
		return nil, errors.New("the fake machine fails as its cmdline tells it to")
	}
	if s.disk > 0 {
		if err := allocate(vmm.DiskPath(spec.Dir, vmm.DiskOverlay), s.disk); err != nil {
			return nil, err
		}
	}
	if err := os.RemoveAll(filepath.Join(spec.Dir, filesDir)); err != nil {
		return nil, err
	}
	now := time.Now()
	m := d.machine(spec, s, kept{ID: spec.ID, Since: now, Limits: spec.Config.Limits,
		Steps: time.Duration(now.UnixNano())}, notify)
	if err := m.save(); err != nil {
		return nil, err
	}
	m.print("fake machine " + spec.ID + " boots\r\n")
	m.mu.Lock()
	m.arm()
	m.mu.Unlock()
	return m, nil
}

func allocate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), 0, 0, size)
}

// Adopt implements vmm.Driver. The machine continues from the state in fake.json.
func (d *Driver) Adopt(
	_ context.Context, spec *vmm.Spec, _ vmm.Process, notify func(vmm.Notice),
) (vmm.Machine, error) {
	path := filepath.Join(spec.Dir, stateFile)
	k, err := load(path)
	if err == nil && k.ID != spec.ID {
		err = errors.Join(fs.ErrNotExist, os.Remove(path))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no fake machine %s: %w", spec.ID, vmm.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	s, err := parseScript(spec.Config.Cmdline)
	if err != nil {
		return nil, err
	}
	at := time.Now()
	k.Since = at.Add(-max(0, at.Sub(k.Since))) // with a monotonic clock reading
	m := d.machine(spec, s, k, notify)
	m.mu.Lock()
	m.arm()
	m.mu.Unlock()
	return m, nil
}

// Sweep implements vmm.Driver.
func (d *Driver) Sweep(_ context.Context, stateDir string, keep func(uuid string) bool) error {
	paths, err := filepath.Glob(filepath.Join(stateDir, "vms", "*", stateFile))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range paths {
		if k, err := load(path); err != nil || !keep(k.ID) {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}
