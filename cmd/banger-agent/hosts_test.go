package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/vmm/guest"
)

// TestFirstHosts writes /etc/hosts at the first start, whatever the image has there.
func TestFirstHosts(t *testing.T) {
	for _, made := range []string{"", "etc", "file", "empty", "read-only", "link", "dangling", "dir"} {
		root := t.TempDir()
		path := filepath.Join(root, "etc/hosts")
		var err error
		if made != "" {
			err = os.Mkdir(filepath.Dir(path), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		switch made {
		case "file":
			err = os.WriteFile(path, []byte("192.0.2.1 build localhost\n"), 0o644)
		case "empty":
			err = os.WriteFile(path, nil, 0o644)
		case "read-only":
			err = os.WriteFile(path, []byte("192.0.2.1 build\n"), 0o444)
		case "link":
			if err = os.WriteFile(path+".real", nil, 0o644); err == nil {
				err = os.Symlink("hosts.real", path)
			}
		case "dangling":
			err = os.Symlink("../no/such", path)
		case "dir":
			err = os.Mkdir(path, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		c := &guest.Config{Hostname: "web", Address: netip.MustParsePrefix("172.30.0.2/20")}
		if err := firstHosts(root); err != nil {
			t.Errorf("%q: %v", made, err)
		}
		setNames(root, c)
		want := blockBegin + "\n" + localHosts + "172.30.0.2\tweb\n" + blockEnd + "\n"
		if got, err := os.ReadFile(path); string(got) != want {
			t.Errorf("%q: %q, error %v", made, got, err)
		}
		if got, err := os.ReadFile(filepath.Join(root, "etc/hostname")); string(got) != "web\n" {
			t.Errorf("%q: hostname %q, error %v", made, got, err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o644 {
			t.Errorf("%q: mode %v, error %v", made, info.Mode(), err)
		}
	}
}

// TestSetHosts keeps a user's lines in later starts, and writes nothing that is right already.
func TestSetHosts(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "etc/hosts")
	block := func(name string) string {
		return blockBegin + "\n" + localHosts + "127.0.1.1\t" + name + "\n" + blockEnd + "\n"
	}
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ has, want string }{
		{"192.0.2.9 mine\n", "192.0.2.9 mine\n" + block("web")},
		{block("old") + "192.0.2.9 mine\n", block("web") + "192.0.2.9 mine\n"},
	} {
		if err := os.WriteFile(path, []byte(c.has), 0o644); err != nil {
			t.Fatal(err)
		}
		var before os.FileInfo
		for n := range 2 {
			setNames(root, &guest.Config{Hostname: "web"})
			now, err := os.Stat(path)
			if err != nil || n == 1 && !os.SameFile(before, now) {
				t.Errorf("it was written again, error %v", err)
			}
			before = now
		}
		if got, _ := os.ReadFile(path); string(got) != c.want {
			t.Errorf("%q became %q, not %q", c.has, got, c.want)
		}
	}
	lines := hostsLines("localhost", netip.MustParsePrefix("172.30.0.2/20"))
	if strings.Contains(lines, "172") {
		t.Errorf("localhost is %q", lines)
	}
}
