package vmm_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"banger/internal/sshkeys"
	"banger/vmm"
	"banger/vmm/fake"
	"banger/vmm/guest"
)

// memory is a Store that keeps its records over the lives of Managers.
type memory struct {
	mu      sync.Mutex
	last    uint64
	records map[uint64]vmm.Record
	saved   []vmm.DiskSnapshot
	rules   []vmm.QuotaRule
}

func (s *memory) Quotas(context.Context) ([]vmm.QuotaRule, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.rules), nil
}

func (s *memory) SetQuota(ctx context.Context, r vmm.QuotaRule) error {
	_ = s.DeleteQuota(ctx, r.UID, r.Quota)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = append(s.rules, r)
	return nil
}

func (s *memory) DeleteQuota(_ context.Context, uid int64, quota string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.rules)
	s.rules = slices.DeleteFunc(s.rules, func(r vmm.QuotaRule) bool {
		return r.UID == uid && r.Quota == quota
	})
	if len(s.rules) == n {
		return vmm.ErrNotFound
	}
	return nil
}

func (s *memory) Snapshots(context.Context) ([]vmm.DiskSnapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.saved), nil
}

func (s *memory) AddSnapshot(_ context.Context, d *vmm.DiskSnapshot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	d.Number = uint16(s.last)
	s.saved = append(s.saved, *d)
	return nil
}

func (s *memory) findSaved(d *vmm.DiskSnapshot) int {
	return slices.IndexFunc(s.saved, func(other vmm.DiskSnapshot) bool {
		return other.Serial == d.Serial && other.Number == d.Number
	})
}

func (s *memory) UpdateSnapshot(_ context.Context, d *vmm.DiskSnapshot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved[s.findSaved(d)] = *d
	return nil
}

func (s *memory) DeleteSnapshot(_ context.Context, d *vmm.DiskSnapshot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.findSaved(d)
	s.saved = slices.Delete(s.saved, i, i+1)
	return nil
}

func (s *memory) Load(context.Context) (all []vmm.Record, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		all = append(all, r)
	}
	return all, nil
}

func (s *memory) taken(r *vmm.Record) bool {
	for _, other := range s.records {
		if other.Name == r.Name && other.Serial != r.Serial {
			return true
		}
	}
	return false
}

func (s *memory) Insert(_ context.Context, r *vmm.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken(r) {
		return vmm.ErrExists
	}
	s.last++
	r.Serial, r.MAC = s.last, fmt.Sprintf("02:00:00:00:00:%02x", s.last)
	s.records[r.Serial] = *r
	return nil
}

func (s *memory) Update(_ context.Context, r *vmm.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken(r) {
		return vmm.ErrExists
	}
	s.records[r.Serial] = *r
	return nil
}

func (s *memory) Delete(_ context.Context, serial uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.records, serial)
	return nil
}

func (s *memory) Lease(context.Context, uint64, netip.Prefix, netip.Addr) (netip.Addr, error) {
	return netip.MustParseAddr("172.30.0.2"), nil
}

func (s *memory) Close() error { return nil }

type images struct{}

func (images) Names() []string { return []string{"builtin"} }
func (images) Image(name string) (vmm.Image, error) {
	if name != "builtin" {
		return vmm.Image{}, vmm.ErrNotFound
	}
	return vmm.Image{Name: name, Memory: 128 << 20}, nil
}
func (images) Seed(string, vmm.NetMode, guest.Config) ([]byte, error) {
	return nil, vmm.ErrUnsupported
}

type network struct{}

func (network) Check(mode vmm.NetMode) error {
	if mode == vmm.NetBridge {
		return vmm.ErrNotPermitted
	}
	return nil
}
func (network) Prefix() netip.Prefix             { return netip.Prefix{} }
func (network) Gateway() netip.Addr              { return netip.Addr{} }
func (network) Address6(netip.Addr) netip.Prefix { return netip.Prefix{} }
func (network) Gateway6() netip.Addr             { return netip.Addr{} }
func (network) MTU() int                         { return 0 }
func (network) Connect(vmm.Connection) error     { return nil }
func (network) Disconnect(uint64)                {}
func (network) Settle() error                    { return nil }
func (network) Release() error                   { return nil }
func (network) LinkStats() (map[uint64]vmm.LinkStats, error) {
	return nil, vmm.ErrUnsupported
}
func (network) Tap(context.Context, uint64, string) (*os.File, error) {
	return nil, vmm.ErrNotPermitted
}

func open(t *testing.T, dir string, store vmm.Store) *vmm.Manager {
	t.Helper()
	return openWith(t, dir, store, images{})
}

func openWith(t *testing.T, dir string, store vmm.Store, set vmm.Images,
	change ...func(*vmm.Options)) *vmm.Manager {
	t.Helper()
	o := vmm.Options{
		StateDir: dir, Store: store, Drivers: []vmm.Driver{fake.New()},
		Network: network{}, Images: set, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Sweep: 10 * time.Millisecond,
		Defaults: vmm.Config{Image: "builtin", CPUs: 1, VMM: "fake", Net: vmm.NetNone,
			IdleTimeout: vmm.NoLimit, StopTimeout: 100 * time.Millisecond},
	}
	for _, c := range change {
		c(&o)
	}
	m, err := vmm.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close(context.Background()) })
	return m
}

func newStore() *memory { return &memory{records: map[uint64]vmm.Record{}} }

func create(t *testing.T, m *vmm.Manager, name, cmdline string) *vmm.VM {
	t.Helper()
	v, err := m.Create(context.Background(), name, vmm.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	configure(t, v, func(c *vmm.Config) { c.Cmdline = cmdline })
	return v
}

func configure(t *testing.T, v *vmm.VM, change func(*vmm.Config)) {
	t.Helper()
	err := v.Configure(context.Background(), func(c *vmm.Config) error { change(c); return nil })
	if err != nil {
		t.Fatal(err)
	}
}

func do(t *testing.T, v *vmm.VM, c vmm.Command, want error) {
	t.Helper()
	if err := v.Do(context.Background(), c); !errors.Is(err, want) {
		t.Fatalf("%s: %v, want %v", c, err, want)
	}
}

func await(t *testing.T, v *vmm.VM, state vmm.State) {
	t.Helper()
	until(t, v, string(state), func(s *vmm.Snapshot) bool { return s.State == state })
}

// until waits for a snapshot that is what the test wants.
func until(t *testing.T, v *vmm.VM, what string, is func(*vmm.Snapshot) bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		changed := v.Changed()
		if is(v.Snapshot()) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("it is %s, and never %s", v.Snapshot().State, what)
		}
	}
}

func TestLifecycle(t *testing.T) {
	m := open(t, t.TempDir(), newStore())
	v := create(t, m, "web", "")
	do(t, v, vmm.Pause, vmm.ErrNotRunning)
	for _, step := range []struct {
		command vmm.Command
		state   vmm.State
	}{
		{vmm.Stop, vmm.Stopped}, {vmm.Start, vmm.Running}, {vmm.Start, vmm.Running},
		{vmm.Pause, vmm.Paused}, {vmm.Pause, vmm.Paused}, {vmm.Resume, vmm.Running},
		{vmm.Restart, vmm.Running}, {vmm.Pause, vmm.Paused}, {vmm.Stop, vmm.Stopped},
		{vmm.Start, vmm.Running}, {vmm.Kill, vmm.Stopped}, {vmm.Kill, vmm.Stopped},
	} {
		do(t, v, step.command, nil)
		if s := v.Snapshot().State; s != step.state {
			t.Fatalf("after %s: %s, want %s", step.command, s, step.state)
		}
	}
	for i, e := range m.Events() {
		if e.Seq != uint64(i+1) {
			t.Errorf("event %d has number %d", i, e.Seq)
		}
	}
	if err := m.Remove(context.Background(), "web", nil); err != nil {
		t.Fatal(err)
	}
	do(t, v, vmm.Start, vmm.ErrNotFound)
}

func TestEnds(t *testing.T) {
	for _, c := range []struct {
		name, cmdline string
		want          vmm.State
		reason        string
	}{
		{"poweroff", "fake.poweroff=1ms", vmm.Stopped, ""},
		{"exit", "fake.exit=1ms:boom", vmm.Failed, "boom"},
		{"panic", "fake.panic=1ms", vmm.Failed, "the guest's kernel panicked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := create(t, open(t, t.TempDir(), newStore()), "web", c.cmdline)
			do(t, v, vmm.Start, nil)
			await(t, v, c.want)
			if got := v.Snapshot().Error; got != c.reason {
				t.Errorf("error %q, want %q", got, c.reason)
			}
			do(t, v, vmm.Stop, nil)
			await(t, v, vmm.Stopped)
		})
	}
}

func TestCancelStart(t *testing.T) {
	for _, c := range []vmm.Command{vmm.Stop, vmm.Kill} {
		v := create(t, open(t, t.TempDir(), newStore()), "web", "fake.boot=1h")
		if err := v.Accept(context.Background(), vmm.Start); err != nil {
			t.Fatal(err)
		}
		await(t, v, vmm.Starting)
		do(t, v, vmm.Restart, vmm.ErrBusy)
		do(t, v, c, nil)
		await(t, v, vmm.Stopped)
	}
}

func TestKillDuringStop(t *testing.T) {
	v := create(t, open(t, t.TempDir(), newStore()), "web", "fake.stop=ignore")
	configure(t, v, func(c *vmm.Config) { c.StopTimeout = time.Hour })
	do(t, v, vmm.Start, nil)
	if err := v.Accept(context.Background(), vmm.Stop); err != nil {
		t.Fatal(err)
	}
	await(t, v, vmm.Stopping)
	do(t, v, vmm.Start, vmm.ErrBusy)
	do(t, v, vmm.Kill, nil)
	await(t, v, vmm.Stopped)
}

func TestIdleTimeout(t *testing.T) {
	v := create(t, open(t, t.TempDir(), newStore()), "web", "")
	do(t, v, vmm.Start, nil)
	configure(t, v, func(c *vmm.Config) { c.IdleTimeout = time.Millisecond })
	await(t, v, vmm.Stopped)
}

func TestAdopt(t *testing.T) {
	dir, store := t.TempDir(), newStore()
	m := open(t, dir, store)
	for _, name := range []string{"runs", "rests", "died", "off"} {
		v := create(t, m, name, "")
		if name != "off" {
			do(t, v, vmm.Start, nil)
		}
		if name == "rests" {
			do(t, v, vmm.Pause, nil)
		}
	}
	if err := os.Remove(m.VM("died").Snapshot().Dir + "/fake.json"); err != nil {
		t.Fatal(err)
	}
	last := m.Events()[len(m.Events())-1].Seq
	if err := m.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	m = open(t, dir, store)
	for name, want := range map[string]vmm.State{
		"runs": vmm.Running, "rests": vmm.Paused, "died": vmm.Failed, "off": vmm.Stopped,
	} {
		if got := m.VM(name).Snapshot().State; got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if first := m.Events()[0].Seq; first != last+1 {
		t.Errorf("events go on with %d after %d", first, last)
	}
}

func TestRandomCommands(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	m := open(t, t.TempDir(), newStore())
	var vms []*vmm.VM
	for i := range 20 {
		vms = append(vms, create(t, m, fmt.Sprintf("v%d", i), "fake.boot=1ms"))
	}
	commands := []vmm.Command{vmm.Start, vmm.Stop, vmm.Restart, vmm.Kill, vmm.Pause, vmm.Resume}
	var wg sync.WaitGroup
	for g := range 50 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(seed, uint64(g)))
			for range 20 {
				c := commands[r.IntN(len(commands))]
				err := vms[r.IntN(len(vms))].Do(context.Background(), c)
				known := []error{nil, vmm.ErrBusy, vmm.ErrNotRunning, vmm.ErrGone}
				if !slices.ContainsFunc(known, func(e error) bool { return errors.Is(err, e) }) {
					t.Errorf("%s: %v", c, err)
				}
			}
		}()
	}
	wg.Wait()
	for _, v := range vms {
		do(t, v, vmm.Kill, nil)
		if s := v.Snapshot(); s.State != vmm.Stopped || s.Machine != nil || s.Process.PID != 0 {
			t.Errorf("%s is %s after kill, with process %d", s.Name, s.State, s.Process.PID)
		}
	}
}

// TestUnfinishedHostKey expects that a host key has one name and nothing unfinished is left, if the
// daemon was killed before or after the key was linked to that name.
func TestUnfinishedHostKey(t *testing.T) {
	ctx, dir, store := context.Background(), t.TempDir(), newStore()
	m := open(t, dir, store)
	for _, name := range []string{"linked", "written"} {
		v := create(t, m, name, "")
		do(t, v, vmm.Start, nil)
		do(t, v, vmm.Kill, nil)
		key := filepath.Join(v.Snapshot().Dir, vmm.HostKeyFile)
		_, _, err := sshkeys.HostKey(key)
		err = errors.Join(err, os.Link(key, filepath.Join(v.Snapshot().Dir, ".key-1")))
		if name == "written" {
			err = errors.Join(err, os.Remove(key))
		}
		for _, suffix := range []string{vmm.NewSuffix, vmm.RawSuffix, vmm.ExportSuffix} {
			disk := vmm.DiskPath(v.Snapshot().Dir, vmm.DiskWork)
			err = errors.Join(err, os.WriteFile(disk+suffix, nil, 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(ctx); err != nil {
		t.Fatal(err)
	}
	m = open(t, dir, store)
	for _, name := range []string{"linked", "written"} {
		key := filepath.Join(m.VM(name).Snapshot().Dir, vmm.HostKeyFile)
		if _, _, err := sshkeys.HostKey(key); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, pattern := range []string{"*/.*", "*/disks/*.*.*"} {
		if left, _ := filepath.Glob(filepath.Join(dir, "vms", pattern)); len(left) > 0 {
			t.Errorf("left are %q", left)
		}
	}
}
