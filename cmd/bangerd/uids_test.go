package main

import (
	"slices"
	"strings"
	"testing"
)

func TestOverlaps(t *testing.T) {
	const base = 2013265920
	passwd := "root:x:0:0::/root:/bin/sh\nbad\nold:x:1879048193:1::/:/bin/sh\njob:x:2013264896:1::/:/bin/sh\nvm:x:2013265921:1::/:/bin/sh\nabove:x:2030043136:1::/:/bin/sh\n"
	if got, want := overlaps(passwd, 2, false, base), []string{"job:2013264896+1", "vm:2013265921+1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	subuid := "a:100000:65536\nb:1073741824:1073741824\nc:2013264895:1\nd:2013264895:2\ne:2030043136:65536\nf:1:x\n"
	if got, want := overlaps(subuid, 1, true, base), []string{"b:1073741824+1073741824", "d:2013264895+2"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	var many strings.Builder
	for range 20 {
		many.WriteString("x:2013265920:1\n")
	}
	if got := overlaps(many.String(), 1, true, base); len(got) != maxOverlaps+1 {
		t.Errorf("%d are told", len(got))
	}
}

func TestUIDBase(t *testing.T) {
	for base, want := range map[int]bool{0: true, 1: false, -1: false, 65536: false, leastUIDBase: true, 1879048192: true, 2013265920: true, mostUIDBase: true, mostUIDBase + 1: false} {
		c := defaultConfig()
		c.VMUIDBase = base
		if err := c.check(); (err == nil) != want {
			t.Errorf("%d: %v", base, err)
		}
	}
}
