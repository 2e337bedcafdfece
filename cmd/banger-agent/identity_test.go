package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var uuid4 = regexp.MustCompile(`\A[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}\n\z`)

// TestFirstStart renews what an image shares, once, and completes a first start that was cut short.
func TestFirstStart(t *testing.T) {
	const baked = "0123456789abcdef0123456789abcdef\n"
	root := t.TempDir()
	files := map[string]string{
		"etc/machine-id": baked, "var/lib/dbus/machine-id": baked,
		"var/lib/systemd/random-seed":  "seed",
		"etc/ssh/ssh_host_rsa_key.pub": "public", "etc/ssh/ssh_host_ecdsa_key": "private",
		"etc/ssh/ssh_host_ecdsa_key.pub": "public", "etc/ssh/sshd_config": "mine",
	}
	write := func() {
		t.Helper()
		for name, text := range files {
			path := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	read := func(name string) string { return string(readFile(filepath.Join(root, name))) }
	mark := filepath.Join(root, firstMark)
	write()
	firstStart(root, false)
	for name, text := range files {
		if read(name) != text {
			t.Errorf("a later start has changed %s", name)
		}
	}
	for _, cut := range []bool{false, true} {
		write()
		if cut {
			if err := os.WriteFile(mark, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		firstStart(root, !cut)
		id := read("etc/machine-id")
		if id == baked || !uuid4.MatchString(id) {
			t.Errorf("machine-id %q", id)
		}
		if read("var/lib/dbus/machine-id") != id {
			t.Error("the ids differ")
		}
		if read("var/lib/systemd/random-seed") != "" {
			t.Error("the seed stayed")
		}
		if read("etc/ssh/sshd_config") != "mine" {
			t.Error("the settings of sshd changed")
		}
		key := read("etc/ssh/ssh_host_ecdsa_key")
		_, err := exec.LookPath("ssh-keygen")
		if (err == nil) != strings.Contains(key, "PRIVATE KEY") || key == "private" {
			t.Errorf("the host key is %q", key)
		}
		if _, err := os.Lstat(mark); err == nil {
			t.Error("the mark stayed")
		}
	}
}

// TestMachineIDOfSystemd leaves alone what systemd itself takes for a first start.
func TestMachineIDOfSystemd(t *testing.T) {
	for _, has := range []string{"", "\n", "uninitialized\n", "missing"} {
		root := t.TempDir()
		path := filepath.Join(root, "etc/machine-id")
		if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if has != "missing" {
			if err := os.WriteFile(path, []byte(has), 0o444); err != nil {
				t.Fatal(err)
			}
		}
		if err := renewMachineID(root); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(path); string(got) != has && err == nil {
			t.Errorf("%q became %q", has, got)
		}
	}
}

// TestNeverMounted reads the superblocks of file systems that were mounted and were not.
func TestNeverMounted(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	for _, args := range [][]string{{"truncate", "-s", "8M", disk}, {"mke2fs", "-q", "-t", "ext4", disk}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v (make test-deps): %s", err, out)
		}
	}
	if !neverMounted(disk) {
		t.Error("a new one was mounted")
	}
	if out, err := exec.Command("tune2fs", "-C", "1", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if neverMounted(disk) {
		t.Error("one that was mounted once never was")
	}
	if neverMounted("/no/such") {
		t.Error("a missing one was never mounted")
	}
}
