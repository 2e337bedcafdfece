package image

import (
	"os"
	"path/filepath"
	"testing"

	"banger/vmm"
	"banger/vmm/guest"
)

func TestSeedNeedsTheAgent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	makeImage(t, filepath.Join(dir, Builtin), "kernel")
	s, _ := openTest(t, dir)
	if _, err := s.Seed("6a2f", vmm.NetNone, guest.Config{}); err == nil {
		t.Error("a seed without an agent")
	}
	if err := os.Remove(filepath.Join(dir, Builtin, "initrd")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Seed("6a2f", vmm.NetNone, guest.Config{}); err == nil {
		t.Error("a seed without an initramfs")
	}
}
