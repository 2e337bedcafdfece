package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/vmm/dns"
)

func TestMadeByBanger(t *testing.T) {
	for _, c := range []struct {
		args string
		want bool
	}{
		{"/usr/bin/qemu-system-x86_64 -name guest=banger-web,process=x", false},
		{"qemu-system-x86_64 -M microvm -device virtserialport,chardev=agent,name=banger.agent", true},
		{"qemu-system-x86_64 -name guest=other", false},
		{"qemu-system-x86_64 -append guest=banger-web", false},
		{"qemu-system-x86_64 -device virtserialport,name=banger.agents", false},
		{"vim virtserialport,chardev=agent,name=banger.agent", false},
		{"", false},
	} {
		if got := madeByBanger([]byte(strings.ReplaceAll(c.args, " ", "\x00") + "\x00")); got != c.want {
			t.Errorf("%q: %v", c.args, got)
		}
	}
}

// TestForgetNames takes the names that a daemon left out of its hosts file, and nothing else.
func TestForgetNames(t *testing.T) {
	dir := t.TempDir()
	hosts := filepath.Join(dir, "hosts")
	const theirs = "127.0.0.1 localhost\n# banger other: begin, kept by bangerd\n10.1.0.2 db.vm\n# banger other: end\n"
	if err := os.WriteFile(hosts, []byte(theirs), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := dns.WriteHosts(hosts, "bt9", []byte("172.30.1.2 web.vm\n")); err != nil {
		t.Fatal(err)
	}
	f := flags{paths: paths{mount: dir, state: dir, config: filepath.Join(dir, "config.toml")}, explicit: map[string]bool{}}
	if err := os.WriteFile(f.config, []byte("bridge = \"bt9\"\nhosts_file = \""+hosts+"\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := forgetNames(f); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(hosts); string(got) != theirs || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
}
