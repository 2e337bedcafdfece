package store

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"banger/vmm"
)

func TestQuotas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := opened(t, path)
	for _, r := range []vmm.QuotaRule{
		{UID: 1<<32 - 2, Quota: "disk", Most: vmm.NoQuota}, {UID: vmm.EveryUID, Quota: "vms", Most: 9},
		{UID: 0, Quota: "vms", Most: 1}, {UID: 0, Quota: "vms", Most: 0}, {UID: 7, Quota: "cpus", Most: 4},
	} {
		if err := s.SetQuota(bg, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.DeleteQuota(bg, 7, "cpus"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteQuota(bg, 7, "cpus"); !errors.Is(err, vmm.ErrNotFound) {
		t.Errorf("a rule that is gone: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = opened(t, path)
	defer s.Close()
	got, err := s.Quotas(bg)
	want := []vmm.QuotaRule{{UID: vmm.EveryUID, Quota: "vms", Most: 9},
		{UID: 0, Quota: "vms", Most: 0}, {UID: 1<<32 - 2, Quota: "disk", Most: vmm.NoQuota}}
	byUID := cmpopts.SortSlices(func(a, b vmm.QuotaRule) bool { return a.UID < b.UID })
	if d := cmp.Diff(want, got, byUID); err != nil || d != "" {
		t.Errorf("%v %s", err, d)
	}
}
