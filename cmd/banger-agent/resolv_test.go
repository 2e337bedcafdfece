package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

func TestResolvers(t *testing.T) {
	gateway := netip.MustParseAddr("172.30.0.1")
	ours := resolvMark + "search vm\nnameserver 172.30.0.1\n"
	const theirs = "nameserver 192.0.2.1\n"
	for _, c := range []struct {
		name string
		make string // what /etc is prepared with, as a shell would say it
		told bool
		want string // empty: the file is not there
	}{
		{"missing", "", false, ours},
		{"of the image", "file", false, ours},
		{"changed since", "file", true, theirs},
		{"ours, changed", "old", true, ours},
		{"a link of somebody's", "link", false, theirs},
		{"a link that leads nowhere", "dangling", false, ours},
		{"systemd-resolved has not started yet", "resolved", false, ""},
		{"a directory", "dir", false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			path := filepath.Join(root, "etc/resolv.conf")
			do := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			if c.make != "" {
				do(os.MkdirAll(filepath.Join(root, "etc"), 0o755))
			}
			switch c.make {
			case "file":
				do(os.WriteFile(path, []byte(theirs), 0o644))
			case "old":
				do(os.WriteFile(path, []byte(resolvMark+"nameserver 172.29.0.1\n"), 0o644))
			case "link":
				do(os.WriteFile(path+".real", []byte(theirs), 0o644))
				do(os.Symlink("resolv.conf.real", path))
			case "resolved":
				do(os.MkdirAll(filepath.Join(root, "lib/systemd"), 0o755))
				do(os.WriteFile(filepath.Join(root, "lib/systemd/systemd-resolved"), nil, 0o755))
				fallthrough
			case "dangling":
				do(os.Symlink("../run/systemd/resolve/stub-resolv.conf", path))
			case "dir":
				do(os.Mkdir(path, 0o755))
			}
			r := resolvers{root: root, told: c.told}
			for range 2 { // the second time nothing changes
				do(r.set([]netip.Addr{gateway}, gateway))
				if b, _ := os.ReadFile(path); string(b) != c.want {
					t.Fatalf("%q", b)
				}
			}
			conf, _ := os.ReadFile(filepath.Join(root, "run/systemd/resolved.conf.d/banger.conf"))
			want := ""
			if c.make == "resolved" {
				want = resolvMark + "[Resolve]\nDNS=172.30.0.1\nDomains=vm\n"
			}
			if string(conf) != want {
				t.Errorf("systemd-resolved has %q", conf)
			}
			if left, _ := filepath.Glob(path + ".banger"); left != nil {
				t.Error("left:", left)
			}
		})
	}
	// A resolver that is not the gateway does not know the names.
	if got := string(resolvConf([]netip.Addr{netip.MustParseAddr("10.0.2.3")}, netip.MustParseAddr("10.0.2.2"))); got != resolvMark+"nameserver 10.0.2.3\n" {
		t.Errorf("%q", got)
	}
}
