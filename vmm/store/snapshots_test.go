package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/vmm"
)

func TestSnapshots(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s, err := Open(bg, path)
	if err != nil {
		t.Fatal(err)
	}
	a, b := record("a"), record("b")
	for _, r := range []*vmm.Record{a, b} {
		if err := s.Insert(bg, r); err != nil {
			t.Fatal(err)
		}
	}
	add := func(r *vmm.Record, name string, at int64) *vmm.DiskSnapshot {
		t.Helper()
		d := &vmm.DiskSnapshot{Serial: r.Serial, Name: name, Created: time.Unix(at, 7), State: vmm.Running, Size: 4096, Phase: vmm.SnapshotMaking}
		if err := s.AddSnapshot(bg, d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	one, two, other := add(a, "one", 20), add(a, "two", 10), add(b, "one", 30)
	if one.Number != 1 || two.Number != 2 || other.Number != 1 {
		t.Errorf("numbers %d %d %d", one.Number, two.Number, other.Number)
	}
	if err := s.AddSnapshot(bg, &vmm.DiskSnapshot{Serial: a.Serial, Name: "one"}); !errors.Is(err, vmm.ErrExists) {
		t.Errorf("a name taken: %v", err)
	}
	if err := s.AddSnapshot(bg, &vmm.DiskSnapshot{Serial: 99, Name: "one"}); !errors.Is(err, vmm.ErrNotFound) {
		t.Errorf("of no VM: %v", err)
	}
	one.Phase, one.Frozen = vmm.SnapshotKept, true
	if err := s.UpdateSnapshot(bg, one); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteSnapshot(bg, two); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.DeleteSnapshot(bg, two), s.UpdateSnapshot(bg, two)); !errors.Is(err, vmm.ErrNotFound) {
		t.Errorf("of one removed: %v", err)
	}
	if n := add(a, "two", 40).Number; n == 1 || n == 2 {
		t.Errorf("number %d is given again", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(bg, path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Delete(bg, b.Serial); err != nil {
		t.Fatal(err)
	}
	got, err := s.Snapshots(bg)
	if err != nil || len(got) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	if d := cmp.Diff(*one, got[0]); d != "" {
		t.Error(d)
	}
}

// The numbers of a VM that had every one of them begin anew, past those that it has.
func TestSnapshotNumbersGoRound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s, err := Open(bg, path)
	if err != nil {
		t.Fatal(err)
	}
	r := record("a")
	if err := s.Insert(bg, r); err != nil {
		t.Fatal(err)
	}
	if err := s.AddSnapshot(bg, &vmm.DiskSnapshot{Serial: r.Serial, Name: "first"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	raw(t, path, "UPDATE vms SET snapshots_made = 65534")
	if s, err = Open(bg, path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, want := range []uint16{65535, 2} {
		d := &vmm.DiskSnapshot{Serial: r.Serial, Name: fmt.Sprint(want)}
		if err := s.AddSnapshot(bg, d); err != nil || d.Number != want {
			t.Errorf("number %d, %v; want %d", d.Number, err, want)
		}
	}
}
