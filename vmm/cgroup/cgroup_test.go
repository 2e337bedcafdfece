package cgroup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/vmm"
)

const id = "0f2ab1c3-1111-4222-8333-444444444444"

// hostFiles is a directory that looks like mounted cgroups. Files are plain: what is written stays.
type hostFiles struct {
	*testing.T
	root string
}

func (h hostFiles) make(path, text string) {
	h.Helper()
	path = filepath.Join(h.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		h.Fatal(err)
	}
}

func (h hostFiles) want(path, text string) {
	h.Helper()
	got, err := os.ReadFile(filepath.Join(h.root, path))
	if err != nil || string(got) != text {
		h.Errorf("%s has %q, %v; want %q", path, got, err, text)
	}
}

var limits = vmm.Limits{
	CPUMax:    vmm.CPUMax{Quota: 20 * time.Millisecond, Period: 50 * time.Millisecond},
	CPUWeight: 50, MemoryMax: 1 << 30, PIDsMax: 99,
	IOMax: vmm.IOMax{ReadBytes: 1},
}

func TestLegacy(t *testing.T) {
	h := hostFiles{t, t.TempDir()}
	for _, controller := range []string{"cpu", "memory", "pids"} {
		h.make(controller+"/own/cgroup.procs", "")
	}
	mounts := map[string]string{"cpu": h.root + "/cpu", "memory": h.root + "/memory",
		"pids": h.root + "/pids", "blkio": h.root + "/blkio"}
	own := map[string]string{"cpu": "/own", "memory": "/own", "pids": "/own", "blkio": "/"}
	if openUnified(slog.Default(), mounts, own, "i") != nil {
		t.Error("version 2 is found where only version 1 is mounted")
	}
	groups := openLegacy(slog.Default(), mounts, own, "i")
	if groups == nil || len(groups.Lacks()) != 0 {
		t.Fatalf("no groups: %v", groups)
	}
	for _, f := range []string{"cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares", "cgroup.procs"} {
		h.make("cpu/own/banger-i/"+id+"/"+f, "")
	}
	h.make("memory/own/banger-i/"+id+"/memory.limit_in_bytes", "")
	h.make("memory/own/banger-i/"+id+"/cgroup.procs", "")
	h.make("pids/own/banger-i/"+id+"/pids.max", "")
	h.make("pids/own/banger-i/"+id+"/cgroup.procs", "")
	g, err := groups.Join(context.Background(), id, "web", 42, &limits)
	if err != nil {
		t.Fatal(err)
	}
	h.want("cpu/own/banger-i/"+id+"/cpu.shares", "512")
	h.want("cpu/own/banger-i/"+id+"/cpu.cfs_period_us", "50000")
	h.want("cpu/own/banger-i/"+id+"/cpu.cfs_quota_us", "20000")
	h.want("memory/own/banger-i/"+id+"/memory.limit_in_bytes", "1073741824")
	h.want("pids/own/banger-i/"+id+"/pids.max", "99")
	h.want("pids/own/banger-i/"+id+"/cgroup.procs", "42")

	// A limit that the kernel refuses leaves those before.
	if err := os.Remove(h.root + "/memory/own/banger-i/" + id + "/memory.limit_in_bytes"); err != nil {
		t.Fatal(err)
	}
	if err := g.Limit(context.Background(), &vmm.Limits{CPUWeight: 200}); err == nil {
		t.Error("a limit without its file is accepted")
	}
	h.want("cpu/own/banger-i/"+id+"/cpu.shares", "512")
	h.want("cpu/own/banger-i/"+id+"/cpu.cfs_quota_us", "20000")
	h.want("pids/own/banger-i/"+id+"/pids.max", "99")
}

func TestUnified(t *testing.T) {
	h := hostFiles{t, t.TempDir()}
	h.make("own/cgroup.controllers", "cpuset cpu io memory pids\n")
	h.make("own/cgroup.subtree_control", "memory\n")
	h.make("own/banger-i/cgroup.subtree_control", "")
	h.make("own/banger-i/"+id+"/cgroup.procs", "")
	for _, f := range []string{"cpu.max", "cpu.weight", "memory.max", "pids.max"} {
		h.make("own/banger-i/"+id+"/"+f, "")
	}
	if booted() {
		t.Skip("systemd runs here: directories are made below delegated groups only")
	}
	mounts, own := map[string]string{"": h.root}, map[string]string{"": "/own"}
	groups := openUnified(slog.Default(), mounts, own, "i")
	if groups == nil || len(groups.Lacks()) != 0 {
		t.Fatalf("no groups: %v", groups)
	}
	h.want("own/cgroup.subtree_control", "+pids") // the last of those that were missing
	h.want("own/banger-i/cgroup.subtree_control", "+pids")
	if _, err := groups.Join(context.Background(), id, "web", 42, &limits); err != nil {
		t.Fatal(err)
	}
	h.want("own/banger-i/"+id+"/cpu.max", "20000 50000")
	h.want("own/banger-i/"+id+"/cpu.weight", "50")
	h.want("own/banger-i/"+id+"/memory.max", "1073741824")
	h.want("own/banger-i/"+id+"/pids.max", "99")
	h.want("own/banger-i/"+id+"/cgroup.procs", "42")
}

// Without cgroups every limit is refused with a remedy, and none is no limit.
func TestNone(t *testing.T) {
	n := none{}
	why := n.Lacks()
	for feature := range controllers {
		if !strings.Contains(why[feature], "cgroup") {
			t.Errorf("%s is lacking because of %q", feature, why[feature])
		}
	}
	ctx := context.Background()
	g, err := n.Join(ctx, id, "web", 42, &vmm.Limits{IOMax: limits.IOMax})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range knobs {
		l := vmm.Limits{}
		switch k.feature {
		case vmm.FeatureCPUMax:
			l.CPUMax = limits.CPUMax
		case vmm.FeatureCPUWeight:
			l.CPUWeight = 1
		case vmm.FeatureMemoryMax:
			l.MemoryMax = 1
		case vmm.FeaturePIDsMax:
			l.PIDsMax = 1
		}
		if err := g.Limit(ctx, &l); !errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("%s: %v", k.feature, err)
		}
	}
}

// What systemd gets means the same as what cgroup's files get.
func TestProperties(t *testing.T) {
	g := &scope{s: &systemd{controllers: []string{"cpu", "memory", "pids"}}, known: true}
	all, err := g.properties(&limits)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range all {
		got = append(got, fmt.Sprintf("%s=%v", p.Name, p.Value.Value()))
	}
	want := []string{"CPUQuotaPerSecUSec=400000", "CPUQuotaPeriodUSec=50000", "CPUWeight=50",
		"MemoryMax=1073741824", "TasksMax=99"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	g.s.controllers = []string{"memory"}
	if _, err := g.properties(&limits); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("without controllers: %v", err)
	}
	g.limits = limits
	if all, err = g.properties(&vmm.Limits{CPUMax: limits.CPUMax, CPUWeight: 50,
		MemoryMax: 1 << 30, PIDsMax: 99}); len(all) != 0 || err != nil {
		t.Errorf("unchanged limits are sent again: %v, %v", all, err)
	}
}
