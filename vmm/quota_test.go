package vmm_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"banger/vmm"
	"banger/vmm/fake"
)

const (
	alice = 1000
	bob   = 1001
)

// limited opens a Manager whose users have these quotas.
func limited(t *testing.T, dir string, store vmm.Store, most vmm.Amounts,
	change ...func(*vmm.Options)) *vmm.Manager {
	t.Helper()
	set := func(o *vmm.Options) { o.Quotas = &most }
	return openWith(t, dir, store, images{}, append(change, set)...)
}

// heavy is the fake driver with machines that use the host's memory.
type heavy struct{ *fake.Driver }

const heavyOwn = 1 << 20 // of a machine beside its guest

func (heavy) HostMemory(spec *vmm.Spec) int64 { return spec.Config.Memory + heavyOwn }

// withHost replaces the fake driver by a heavy one on a host with so much memory.
func withHost(memory int64) func(*vmm.Options) {
	return func(o *vmm.Options) {
		o.Drivers, o.HostMemory = []vmm.Driver{heavy{fake.New()}}, memory
	}
}

// atOnce runs f n times side by side and returns how many calls succeeded. Others must want.
func atOnce(t *testing.T, n int, want error, f func(i int) error) int {
	t.Helper()
	var ok atomic.Int32
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			switch err := f(i); {
			case err == nil:
				ok.Add(1)
			case !errors.Is(err, want):
				t.Errorf("%v, want %v", err, want)
			}
		})
	}
	wg.Wait()
	return int(ok.Load())
}

func wantUse(t *testing.T, m *vmm.Manager, uid uint32, want vmm.Amounts) {
	t.Helper()
	var got vmm.Amounts
	for _, q := range vmm.Quotas() {
		got[q], _ = m.Quota(uid, q)
	}
	if got != want {
		t.Errorf("uid %d uses %v, want %v", uid, got, want)
	}
}

// TestQuotaRaces makes and starts more VMs at once than one user, and the host, may have.
func TestQuotaRaces(t *testing.T) {
	const mib = 1 << 20
	most := vmm.Amounts{vmm.QuotaVMs: 10, vmm.QuotaCPUs: 5, vmm.QuotaMemory: 4 * 128 * mib,
		vmm.QuotaDisk: vmm.NoQuota}
	m := limited(t, t.TempDir(), newStore(), most, withHost(7*129*mib))
	bg := context.Background()
	for _, uid := range []uint32{alice, bob, 0} {
		n := atOnce(t, 40, vmm.ErrQuota, func(i int) error {
			_, err := m.Create(bg, fmt.Sprintf("v%d-%d", uid, i), vmm.Owner{UID: uid})
			return err
		})
		if want := map[uint32]int{alice: 10, bob: 10, 0: 40}[uid]; n != want {
			t.Errorf("uid %d made %d VMs, want %d", uid, n, want)
		}
	}
	starts := func(uid uint32, want error) int {
		var own []*vmm.VM
		for _, v := range m.VMs() {
			if v.Snapshot().Owner.UID == uid {
				own = append(own, v)
			}
		}
		return atOnce(t, len(own), want, func(i int) error { return own[i].Do(bg, vmm.Start) })
	}
	if n := starts(alice, vmm.ErrQuota); n != 4 {
		t.Errorf("alice runs %d VMs, her memory is for 4", n)
	}
	if err := m.SetQuota(bg, alice, vmm.QuotaMemory, vmm.NoQuota); err != nil {
		t.Fatal(err)
	}
	if n := starts(alice, vmm.ErrQuota); n != 5 {
		t.Errorf("alice runs %d VMs, her CPUs are for 5", n)
	}
	if n := starts(0, vmm.ErrNoMemory); n != 2 {
		t.Errorf("root runs %d VMs, the host has room for 2 more", n)
	}
	wantUse(t, m, alice, vmm.Amounts{10, 5, 5 * 128 * mib, 0})
	for _, v := range m.VMs() {
		s := v.Snapshot()
		if s.State == vmm.Running {
			do(t, v, vmm.Kill, nil)
		}
		if err := m.Remove(bg, s.Name, nil); err != nil {
			t.Fatal(err)
		}
	}
	if uids := m.QuotaUIDs(); !slices.Equal(uids, []uint32{alice}) {
		t.Errorf("%v use something or have a rule, only alice has one", uids)
	}
	wantUse(t, m, alice, vmm.Amounts{})
}

// TestQuotaSums changes VMs from many goroutines and compares the sums with a count of all VMs, also
// after the next daemon has found them again.
func TestQuotaSums(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dir, store := t.TempDir(), newStore()
	most := vmm.Amounts{vmm.QuotaVMs: 9, vmm.QuotaCPUs: 12, vmm.QuotaMemory: 1 << 30,
		vmm.QuotaDisk: 1 << 20}
	m := limited(t, dir, store, most, withHost(1<<30))
	bg := context.Background()
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(g)))
			for range 120 {
				change(bg, m, r)
			}
		})
	}
	wg.Wait()
	check := func(m *vmm.Manager) {
		t.Helper()
		want := map[uint32]*vmm.Amounts{alice: {}, bob: {}}
		for _, v := range m.VMs() {
			s := v.Snapshot()
			sum := want[s.Owner.UID]
			sum[vmm.QuotaVMs]++
			sum[vmm.QuotaDisk] += s.Config.Disk
			if n := len(s.Saved); n > 0 {
				sum[vmm.QuotaDisk] += s.Saved[n-1].Size
			}
			if !s.State.Down() {
				sum[vmm.QuotaCPUs] += int64(s.Config.CPUs)
				sum[vmm.QuotaMemory] += s.Config.Memory
			}
		}
		for uid, sum := range want {
			wantUse(t, m, uid, *sum)
			for q, n := range sum {
				if n > most[q] {
					t.Errorf("uid %d uses %d %s of %d", uid, n, vmm.Quota(q), most[q])
				}
			}
		}
	}
	check(m)
	if err := m.Close(bg); err != nil {
		t.Fatal(err)
	}
	m = limited(t, dir, store, most, withHost(1<<30))
	check(m)
	for _, v := range m.VMs() {
		do(t, v, vmm.Kill, nil)
		if err := m.Remove(bg, v.Snapshot().Name, nil); err != nil {
			t.Fatal(err)
		}
	}
	if uids := m.QuotaUIDs(); len(uids) > 0 {
		t.Errorf("%v use something without a VM", uids)
	}
	// All of the host's memory is free again.
	v := create(t, m, "last", "")
	configure(t, v, func(c *vmm.Config) { c.Memory = 1<<30 - heavyOwn })
	do(t, v, vmm.Start, nil)
}

// change makes one random change, which may be refused.
func change(ctx context.Context, m *vmm.Manager, r *rand.Rand) {
	uids := []uint32{alice, bob}
	name := fmt.Sprintf("v%d", r.IntN(24))
	v := m.VM(name)
	if v == nil {
		_, _ = m.Create(ctx, name, vmm.Owner{UID: uids[r.IntN(2)]})
		return
	}
	commands := []vmm.Command{vmm.Start, vmm.Start, vmm.Kill, vmm.Restart, vmm.Pause}
	saved := fmt.Sprintf("s%d", r.IntN(3))
	switch r.IntN(9) {
	case 0:
		_ = m.Remove(ctx, name, nil)
	case 1:
		_ = v.Configure(ctx, func(c *vmm.Config) error { c.Disk += 1 << (10 + r.IntN(8)); return nil })
	case 2:
		_ = v.Configure(ctx, func(c *vmm.Config) error {
			c.CPUs, c.Memory = 1+r.IntN(4), int64(128+r.IntN(128))<<20
			return nil
		})
	case 3:
		uid := uids[r.IntN(2)]
		_ = v.Chown(ctx, func(o vmm.Owner) (vmm.Owner, error) { o.UID = uid; return o, nil })
	case 4:
		_ = v.TakeSnapshot(ctx, saved, nil)
	case 5:
		_ = v.RemoveSnapshot(ctx, saved, nil)
	default:
		_ = v.Do(ctx, commands[r.IntN(len(commands))])
	}
}

// TestQuotaRules expects rules to be kept, followed and bounded in number.
func TestQuotaRules(t *testing.T) {
	dir, store := t.TempDir(), newStore()
	most := vmm.Amounts{1, 2, 3, 4}
	m := limited(t, dir, store, most)
	bg := context.Background()
	want := func(uid uint32, q vmm.Quota, want int64) {
		t.Helper()
		if _, got := m.Quota(uid, q); got != want {
			t.Errorf("uid %d may have %d %s, want %d", uid, got, q, want)
		}
	}
	set := func(uid int64, q vmm.Quota, most int64) {
		t.Helper()
		if err := m.SetQuota(bg, uid, q, most); err != nil {
			t.Fatal(err)
		}
	}
	want(alice, vmm.QuotaCPUs, 2)
	want(0, vmm.QuotaCPUs, vmm.NoQuota)
	set(vmm.EveryUID, vmm.QuotaCPUs, 7)
	set(alice, vmm.QuotaMemory, 0)
	set(0, vmm.QuotaVMs, 5)
	for range 2 {
		want(alice, vmm.QuotaCPUs, 7)
		want(alice, vmm.QuotaMemory, 0)
		want(bob, vmm.QuotaMemory, 3)
		want(0, vmm.QuotaVMs, 5)
		want(0, vmm.QuotaCPUs, vmm.NoQuota)
		if got := m.DefaultQuota(vmm.QuotaCPUs); got != 7 {
			t.Errorf("all may have %d CPUs, want 7", got)
		}
		if err := m.Close(bg); err != nil {
			t.Fatal(err)
		}
		m = limited(t, dir, store, most)
	}
	for _, uid := range []int64{vmm.EveryUID, alice, bob} {
		for _, q := range vmm.Quotas() {
			if err := m.DropQuota(bg, uid, q); err != nil {
				t.Fatal(err)
			}
		}
	}
	want(alice, vmm.QuotaCPUs, 2)
	want(alice, vmm.QuotaMemory, 3)
	full := atOnce(t, 5000, vmm.ErrNoSpace, func(i int) error {
		return m.SetQuota(bg, int64(5000+i), vmm.QuotaVMs, 1)
	})
	if full != 4095 { // and root's
		t.Errorf("%d more uids have rules", full)
	}
	set(0, vmm.QuotaDisk, 1)
	if err := m.DropQuota(bg, 4, vmm.QuotaVMs); err != nil {
		t.Errorf("a rule that is not there: %v", err)
	}
}

// huge is an image with the longest root disk that a header can name.
type huge struct{ images }

func (huge) Image(name string) (vmm.Image, error) {
	return vmm.Image{Name: name, Memory: 128 << 20, RootSize: math.MaxInt64}, nil
}

// TestQuotaOverflow expects sums that no integer holds to be refused, without a limit as well.
func TestQuotaOverflow(t *testing.T) {
	m := openWith(t, t.TempDir(), newStore(), huge{})
	v := create(t, m, "one", "")
	configure(t, v, func(c *vmm.Config) { c.Disk = 1 << 44 })
	if _, err := m.Create(context.Background(), "two", vmm.Owner{}); !errors.Is(err, vmm.ErrQuota) {
		t.Errorf("%v, want %v", err, vmm.ErrQuota)
	}
	wantUse(t, m, 0, vmm.Amounts{1, 0, 0, math.MaxInt64})
}

// broken is a store that fails while it is told to.
type broken struct {
	*memory
	fails atomic.Bool
}

var errBroken = errors.New("the disk is gone")

func (s *broken) Insert(ctx context.Context, r *vmm.Record) error {
	if s.fails.Load() {
		return errBroken
	}
	return s.memory.Insert(ctx, r)
}

func (s *broken) Update(ctx context.Context, r *vmm.Record) error {
	if s.fails.Load() {
		return errBroken
	}
	return s.memory.Update(ctx, r)
}

func (s *broken) AddSnapshot(ctx context.Context, d *vmm.DiskSnapshot) error {
	if s.fails.Load() {
		return errBroken
	}
	return s.memory.AddSnapshot(ctx, d)
}

// TestQuotaOfFailures expects what was not recorded to count for nothing.
func TestQuotaOfFailures(t *testing.T) {
	store := &broken{memory: newStore()}
	m := limited(t, t.TempDir(), store, vmm.Amounts{2, 2, 1 << 30, 1 << 20})
	bg := context.Background()
	v, err := m.Create(bg, "web", vmm.Owner{UID: alice})
	if err != nil {
		t.Fatal(err)
	}
	configure(t, v, func(c *vmm.Config) { c.Disk = 4096 })
	store.fails.Store(true)
	for range 3 {
		for what, f := range map[string]func() error{
			"mkdir": func() error {
				_, err := m.Create(bg, "other", vmm.Owner{UID: alice})
				return err
			},
			"disk": func() error {
				return v.Configure(bg, func(c *vmm.Config) error { c.Disk = 1 << 20; return nil })
			},
			"start":    func() error { return v.Do(bg, vmm.Start) },
			"snapshot": func() error { return v.TakeSnapshot(bg, "s", nil) },
			"chown": func() error {
				return v.Chown(bg, func(o vmm.Owner) (vmm.Owner, error) { o.UID = bob; return o, nil })
			},
		} {
			if err := f(); !errors.Is(err, errBroken) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	store.fails.Store(false)
	wantUse(t, m, alice, vmm.Amounts{1, 0, 0, 4096})
	wantUse(t, m, bob, vmm.Amounts{})
	do(t, v, vmm.Start, nil)
	wantUse(t, m, alice, vmm.Amounts{1, 1, 128 << 20, 4096})
}

// TestHostMemory expects memory that the host never has to be refused at the write, and at the
// start what running VMs leave no room for.
func TestHostMemory(t *testing.T) {
	const gib = 1 << 30
	m := limited(t, t.TempDir(), newStore(), vmm.Amounts{9, 9, 99 * gib, 0}, withHost(2*gib))
	bg := context.Background()
	a, b := create(t, m, "a", ""), create(t, m, "b", "")
	err := a.Configure(bg, func(c *vmm.Config) error { c.Memory = 2 * gib; return nil })
	if !errors.Is(err, vmm.ErrNoMemory) || !strings.Contains(err.Error(), "overcommit_memory") {
		t.Errorf("memory of the whole host: %v", err)
	}
	configure(t, a, func(c *vmm.Config) { c.Memory = 2*gib - heavyOwn })
	do(t, b, vmm.Start, nil)
	do(t, a, vmm.Start, vmm.ErrNoMemory)
	if s := a.Snapshot(); s.State != vmm.Stopped {
		t.Errorf("it is %s after a refused start", s.State)
	}
	do(t, b, vmm.Pause, nil)
	do(t, a, vmm.Start, vmm.ErrNoMemory)
	do(t, b, vmm.Kill, nil)
	do(t, a, vmm.Start, nil)
	do(t, b, vmm.Start, vmm.ErrNoMemory)
}

// TestQuotaOfSubordinates makes VMs as the uids that a user has in her user namespaces.
func TestQuotaOfSubordinates(t *testing.T) {
	most := vmm.Amounts{vmm.QuotaVMs: 3, vmm.QuotaCPUs: 2, vmm.QuotaMemory: vmm.NoQuota,
		vmm.QuotaDisk: vmm.NoQuota}
	dir, store := t.TempDir(), newStore()
	whose := func(o *vmm.Options) {
		o.User = func(uid uint32) uint32 {
			if uid >= 100000 {
				return alice
			}
			return uid
		}
	}
	m := limited(t, dir, store, most, whose)
	bg := context.Background()
	for i, uid := range []uint32{alice, 100000, 100001} {
		if _, err := m.Create(bg, fmt.Sprintf("v%d", i), vmm.Owner{UID: uid}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Create(bg, "more", vmm.Owner{UID: 100002}); !errors.Is(err, vmm.ErrQuota) {
		t.Errorf("a fourth VM: %v", err)
	}
	wantUse(t, m, alice, vmm.Amounts{vmm.QuotaVMs: 3})
	wantUse(t, m, 100000, vmm.Amounts{})
	err := m.VM("v2").Configure(bg, func(c *vmm.Config) error { c.CPUs = 3; return nil })
	if !errors.Is(err, vmm.ErrQuota) {
		t.Errorf("3 CPUs: %v", err)
	}
	if err := m.Close(bg); err != nil {
		t.Fatal(err)
	}
	wantUse(t, limited(t, dir, store, most, whose), alice, vmm.Amounts{vmm.QuotaVMs: 3})
}
