package main

import (
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
