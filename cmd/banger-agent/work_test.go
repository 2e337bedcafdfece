package main

import (
	"os"
	"path/filepath"
	"testing"

	"banger/internal/host"
)

func TestFindWorkDisk(t *testing.T) {
	sys := t.TempDir()
	if got := findWorkDisk(sys); got != "" {
		t.Errorf("%q is none", got)
	}
	for name, serial := range map[string]string{"vda": "overlay\n", "vdb": "work\n"} {
		dir := filepath.Join(sys, "block", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "serial"), []byte(serial), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := findWorkDisk(sys); got != "vdb" {
		t.Errorf("%q, want vdb", got)
	}
}

func TestMountPoint(t *testing.T) {
	const info = `22 1 0:20 / /proc rw,nosuid - proc proc rw
30 1 254:16 / /my\040work rw,relatime - ext4 /dev/vdb rw
`
	for numbers, want := range map[string]string{"254:16": "/my work", "254:1": "", "": ""} {
		if got := mountPoint([]byte(info), numbers); got != want {
			t.Errorf("%s: %q, want %q", numbers, got, want)
		}
	}
}

func TestConcernsDisk(t *testing.T) {
	for event, want := range map[string]bool{
		"change@/devices/x/block/vda\x00ACTION=change\x00SUBSYSTEM=block\x00RESIZE=1\x00SEQNUM=7\x00": true,
		"add@/devices/x/block/vda\x00ACTION=add\x00SUBSYSTEM=block\x00":                               true,
		"change@/devices/x/block/vda\x00ACTION=change\x00SUBSYSTEM=block\x00":                         false,
		"add@/devices/x/net/eth0\x00ACTION=add\x00SUBSYSTEM=net\x00":                                  false,
		"": false,
	} {
		if concernsDisk([]byte(event)) != want {
			t.Errorf("%q: not %v", event, want)
		}
	}
}

func TestIsExt4(t *testing.T) {
	if !isExt4(loopOf(t, mounted(t))) || isExt4("/dev/null") {
		t.Error("ext4 is not told from nothing")
	}
}

// loopOf gives the loop device that is mounted there.
func loopOf(t *testing.T, dir string) string {
	t.Helper()
	for _, m := range host.Mounts(readFile("/proc/self/mountinfo")) {
		if m.Mountpoint == dir {
			return m.Source
		}
	}
	t.Fatalf("nothing is mounted at %s", dir)
	return ""
}
