package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/vmm/guest"
)

// quietStore has these records and takes what it is told.
type quietStore struct {
	Store
	records []Record
}

func (s quietStore) Load(context.Context) ([]Record, error)          { return s.records, nil }
func (quietStore) Snapshots(context.Context) ([]DiskSnapshot, error) { return nil, nil }
func (quietStore) Quotas(context.Context) ([]QuotaRule, error)       { return nil, nil }
func (quietStore) Update(context.Context, *Record) error             { return nil }
func (quietStore) Close() error                                      { return nil }

type quietNetwork struct{ Network }

func (quietNetwork) Settle() error                    { return nil }
func (quietNetwork) Disconnect(uint64)                {}
func (quietNetwork) Address6(netip.Addr) netip.Prefix { return netip.Prefix{} }

type anyImage struct{}

func (anyImage) Names() []string             { return nil }
func (anyImage) Image(string) (Image, error) { return Image{}, nil }
func (anyImage) Seed(string, NetMode, guest.Config) ([]byte, error) {
	return nil, ErrUnsupported
}

// hangingDriver has machines that hang in the kernel, as their names say.
type hangingDriver struct {
	BaseDriver
	release chan struct{}
}

func (hangingDriver) Sweep(context.Context, string, func(string) bool) error {
	return errors.New("a leftover process does not end")
}
func (d hangingDriver) Adopt(_ context.Context, spec *Spec, _ Process, _ func(Notice)) (Machine, error) {
	if spec.Name == "hung" {
		<-d.release
		return nil, ErrNotFound
	}
	return &hangingMachine{done: make(chan struct{}), immortal: spec.Name == "immortal"}, nil
}

type hangingMachine struct {
	BaseMachine

	done     chan struct{}
	once     sync.Once
	immortal bool
}

func (*hangingMachine) Process() Process        { return Process{PID: 1 << 30, StartTime: 1} }
func (m *hangingMachine) Done() <-chan struct{} { return m.done }
func (*hangingMachine) Exit() Exit              { return Exit{Orderly: true} }
func (*hangingMachine) Close() error            { return nil }
func (m *hangingMachine) Kill(ctx context.Context) error {
	if m.immortal {
		<-ctx.Done()
		return ctx.Err()
	}
	m.once.Do(func() { close(m.done) })
	return nil
}

// shorten makes what is waited for short, until the test ends.
func shorten(t *testing.T, waits ...*time.Duration) {
	for _, w := range waits {
		was := *w
		*w = 100 * time.Millisecond
		t.Cleanup(func() { *w = was })
	}
}

// One VM whose VMM or disk hangs holds up neither the daemon's start and end nor the others.
func TestHungVMHoldsUpNobody(t *testing.T) {
	shorten(t, &recoverWait, &killWait, &workWait)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	var records []Record
	for i, name := range []string{"hung", "immortal", "idle", "odd-log"} {
		r := Record{Serial: uint64(i + 1), ID: fmt.Sprintf("id-%d", i), Name: name, State: Running, BootID: strings.TrimSpace(string(boot)),
			Config: Config{VMM: "hanging", IdleTimeout: NoLimit, StopTimeout: time.Second}}
		if name == "hung" {
			r.Config.CPUs, r.Config.Disk = 1, 1<<20
		}
		if name == "idle" {
			r.Config.IdleTimeout = time.Millisecond
		}
		dir := filepath.Join(state, "vms", r.ID)
		if err := os.MkdirAll(DisksDir(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		if name == "odd-log" {
			if err := os.Mkdir(filepath.Join(dir, LogFile), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		records = append(records, r)
	}
	driver := hangingDriver{
		BaseDriver{Capabilities{Name: "hanging", Lacks: map[Feature]string{FeatureBridge: "it hangs"}}},
		make(chan struct{}),
	}
	defer close(driver.release)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	m, err := Open(ctx, Options{StateDir: state, Store: quietStore{records: records}, Drivers: []Driver{driver}, Network: quietNetwork{},
		Images: anyImage{}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Sweep: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	// An odd log says nothing of the VMM.
	if s := m.VM("odd-log").Snapshot(); s.State != Running || s.Machine == nil {
		t.Errorf("the VM with an odd log is %s", s.State)
	}
	// Others are swept while one's turn and another's transition are taken.
	m.VM("odd-log").own <- struct{}{}
	for changed := m.VM("idle").Changed(); m.VM("idle").Snapshot().State != Stopped; changed = m.VM("idle").Changed() {
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("the idle VM is not stopped")
		}
	}
	<-m.VM("odd-log").own
	// Commands to the one that hangs wait as long as they want to.
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	if err := m.VM("hung").Do(short, Kill); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("kill of one that is not recovered: %v", err)
	}
	// What needs its machine is refused.
	m.VM("hung").publish(func(s *Snapshot) {
		s.Saved = []DiskSnapshot{{Serial: s.Serial, Number: 1, Name: "a", Phase: SnapshotMaking}}
	})
	for what, work := range map[string]func(*VM) error{
		"grow": func(v *VM) error {
			return v.Configure(ctx, func(c *Config) error { c.Disk = 2 << 20; return nil })
		},
		"snapshot": func(v *VM) error { _, err := v.snapshotter(ctx); return err },
		"tidy":     func(v *VM) error { return v.tidy(ctx) },
	} {
		if err := work(m.VM("hung")); !errors.Is(err, ErrBusy) {
			t.Errorf("%s of one that is not recovered: %v", what, err)
		}
	}
	err = m.VM("immortal").Do(ctx, Kill)
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "the kernel has not ended it") {
		t.Errorf("kill of one that does not end: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- m.Close(short) }()
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "has not ended") {
			t.Errorf("end: %v", err)
		}
	case <-ctx.Done():
		t.Fatal("the daemon's end waits for the VM that hangs")
	}
}
