package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSysctls writes into a tree that lacks one of the settings, as a kernel may.
func TestSysctls(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "net", "ipv4")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	start := filepath.Join(dir, "ip_unprivileged_port_start")
	if err := os.WriteFile(start, []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := setSysctls(root); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(start); err != nil || string(got) != "0" {
		t.Errorf("%s holds %q (%v), want 0", start, got, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "ping_group_range")); err == nil {
		t.Error("a setting that the kernel lacks was made as a file")
	}
}

// TestSysctlRefused names the setting that the kernel refuses.
func TestSysctlRefused(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "net", "ipv4")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// /dev/full refuses each write.
	if err := os.Symlink("/dev/full", filepath.Join(dir, "ping_group_range")); err != nil {
		t.Fatal(err)
	}
	err := setSysctls(root)
	if err == nil || !strings.Contains(err.Error(), "ping_group_range") {
		t.Errorf("got %v, want an error about ping_group_range", err)
	}
}
