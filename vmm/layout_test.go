package vmm

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

const layoutUID = 1879048192 + 999_998 // no user's

func layoutKey(t *testing.T) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

// oldDir makes a directory as an earlier banger left it.
func oldDir(t *testing.T, key []byte) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "id")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		LogFile: "a log\n", ConsoleFile: "a console\n", HostKeyFile: string(key),
		DiskWork: "a disk", DiskSeed: "a seed",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// chownAll changes the owner of all files in a directory, as root. It returns the uid, or -1.
func chownAll(t *testing.T, dir string) int {
	t.Helper()
	if os.Geteuid() != 0 {
		return -1
	}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, layoutUID, layoutUID))
	})
	if err != nil {
		t.Fatal(err)
	}
	return layoutUID
}

func TestRenew(t *testing.T) {
	key := layoutKey(t)
	dir := oldDir(t, key)
	l, err := net.Listen("unix", filepath.Join(dir, "qmp"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	uid := chownAll(t, dir)
	for range 2 { // the second time there is nothing to do
		if err := renew(dir, uid); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		filepath.Join(dir, LogFile): "a log\n", filepath.Join(dir, ConsoleFile): "a console\n",
		filepath.Join(dir, HostKeyFile): string(key), DiskPath(dir, DiskWork): "a disk",
	} {
		text, err := os.ReadFile(path)
		if err != nil || string(text) != want {
			t.Errorf("%s: %q, %v", path, text, err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		ours, isOurs := filepath.Dir(path) == dir, int(st.Uid) == os.Geteuid()
		if uid >= 0 && ours != isOurs || ours && st.Mode&0o777 != 0o600 {
			t.Errorf("%s belongs to %d, mode %o", path, st.Uid, st.Mode)
		}
	}
	if c, err := net.Dial("unix", filepath.Join(dir, "qmp")); err != nil {
		t.Errorf("the listener is not reached: %v", err)
	} else {
		c.Close()
	}
	left, err := os.ReadDir(DisksDir(dir))
	if err != nil || len(left) != 1 {
		t.Errorf("with the disks there are %v, %v", left, err)
	}
}

// A VMM that its guest has taken over may have put each of these there.
func TestRenewOfHostileDirectory(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("victim"), 0o600); err != nil {
		t.Fatal(err)
	}
	plant := map[string]func(path string) error{
		"link":      func(path string) error { return os.Symlink(victim, path) },
		"hard link": func(path string) error { return os.Link(victim, path) },
		"fifo":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"directory": func(path string) error { return os.MkdirAll(path+"/full", 0o700) },
		"nothing":   func(string) error { return nil },
	}
	for what, put := range plant {
		t.Run(what, func(t *testing.T) {
			dir := oldDir(t, layoutKey(t))
			uid := chownAll(t, dir)
			for _, name := range []string{
				LogFile, ConsoleFile, HostKeyFile, "qmp", "agent", "console", "disks", DiskSeed,
			} {
				path := filepath.Join(dir, name)
				if err := errors.Join(os.RemoveAll(path), put(path)); err != nil {
					t.Fatal(err)
				}
			}
			if uid < 0 {
				// Without users of VMs, this directory alone marks the new layout.
				if err := os.RemoveAll(filepath.Join(dir, "disks")); err != nil {
					t.Fatal(err)
				}
			}
			if err := renew(dir, uid); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if e.Name() != "disks" {
					t.Errorf("%s was moved although it is no such file", e)
				}
			}
			for path, mode := range map[string]uint32{dir: 0o700, victim: 0o600} {
				var st unix.Stat_t
				err := unix.Lstat(path, &st)
				if err != nil || int(st.Uid) != os.Geteuid() || st.Mode&0o777 != mode {
					t.Errorf("%s belongs to %d, mode %o, %v", path, st.Uid, st.Mode, err)
				}
			}
			for path, want := range map[string]string{
				victim: "victim", DiskPath(dir, DiskWork): "a disk",
			} {
				if text, err := os.ReadFile(path); string(text) != want || err != nil {
					t.Errorf("%s has %q, %v", path, text, err)
				}
			}
		})
	}
}

// A crash may leave each step done or not.
func TestRenewAfterCrash(t *testing.T) {
	for name, crash := range map[string]func(dir, moving string) error{
		"before": func(_, moving string) error { return os.Mkdir(moving, 0o700) },
		"between": func(dir, moving string) error {
			return errors.Join(os.Mkdir(moving, 0o700), os.Rename(dir, DisksDir(moving)))
		},
		"after": func(dir, moving string) error {
			return errors.Join(os.Mkdir(moving, 0o700), os.Rename(dir, DisksDir(moving)),
				moveFile(moving, LogFile, unix.S_IFREG))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := oldDir(t, layoutKey(t))
			uid := chownAll(t, dir)
			if err := crash(dir, dir+movingSuffix); err != nil {
				t.Fatal(err)
			}
			if err := renew(dir, uid); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(dir)
			var names []string
			for _, e := range entries {
				names = append(names, e.Name())
			}
			const want = "console.log disks log ssh_host_ed25519_key"
			if got := strings.Join(names, " "); got != want || err != nil {
				t.Errorf("there are %s, %v", got, err)
			}
			if _, err := os.Lstat(dir + movingSuffix); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("left: %v", err)
			}
		})
	}
}
