package main

import (
	"os"
	"testing"
)

func TestCleanerWants(t *testing.T) {
	for _, c := range []struct {
		name           string
		locked, all    bool
		own, other, no bool // of the instance of the state directory, of another that does not live, of none
	}{
		{"one", false, false, true, false, false},
		{"all", false, true, true, true, true},
		{"all, and the state directory is in use", true, true, false, true, true},
	} {
		cleaner := cleaner{instance: "own", locked: c.locked, all: c.all, living: map[string]string{"living": "/x"}}
		for instance, want := range map[string]bool{"own": c.own, "other": c.other, "": c.no, "living": false} {
			if got := cleaner.wants(instance); got != want {
				t.Errorf("%s: of %q: %v", c.name, instance, got)
			}
		}
	}
	lost := cleaner{living: map[string]string{}}
	if lost.wants("") || lost.wants("other") {
		t.Error("a state directory without an instance wants others'")
	}
}

// TestInUse asks for the lock of a directory with a daemon, of one without and of one that never
// had any.
func TestInUse(t *testing.T) {
	dir := t.TempDir()
	if used, err := inUse(dir); used || err != nil {
		t.Errorf("never: %v, %v", used, err)
	}
	f, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if used, err := inUse(dir); !used || err != nil {
		t.Errorf("locked: %v, %v", used, err)
	}
	f.Close()
	if used, err := inUse(dir); used || err != nil {
		t.Errorf("unlocked: %v, %v", used, err)
	}
}

func TestConfirm(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := confirm(null, os.Stderr, 1); err == nil {
		t.Error("what is no terminal confirms")
	}
}
