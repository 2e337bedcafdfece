package main

import (
	"slices"
	"strings"
	"testing"
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

func TestBangerMounts(t *testing.T) {
	got := bangerMounts([]byte(`36 35 98:0 / /a\040b rw,noatime shared:1 - fuse.banger banger rw
37 35 98:0 / /c rw - fuse.sshfs banger rw
38 35 98:0 / /d rw - fuse banger rw
39 35 0:5 / /e rw master:1 - ext4 /dev/sda rw
junk
`))
	if want := []string{"/a b", "/d"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
