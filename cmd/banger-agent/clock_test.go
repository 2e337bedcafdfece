package main

import (
	"testing"
	"time"

	"banger/vmm/guest"

	"golang.org/x/sys/unix"
)

func TestAdjustment(t *testing.T) {
	for _, c := range []struct {
		by        time.Duration
		slew      bool
		modes     uint32
		sec, nsec int64
		offset    int64
	}{
		{8*time.Second + 5, false, 0x2100, 8, 5, 0},
		{-1, false, 0x2100, -1, 999_999_999, 0},
		{-8*time.Second - 250*time.Millisecond, false, 0x2100, -9, 750_000_000, 0},
		{-2 * time.Second, false, 0x2100, -2, 0, 0},
		{-300 * time.Millisecond, true, 0x8001, 0, 0, -300_000},
	} {
		got := adjustment(guest.Adjustment{By: c.by, Slew: c.slew})
		want := unix.Timex{Modes: c.modes, Offset: c.offset,
			Time: unix.Timeval{Sec: c.sec, Usec: c.nsec}}
		if *got != want {
			t.Errorf("%v: %+v, want %+v", c.by, *got, want)
		}
	}
}

func TestDisciplined(t *testing.T) {
	for _, c := range []struct {
		name  string
		timex unix.Timex
		want  bool
	}{
		{"after the boot", unix.Timex{Status: 0x40, Tick: 10000}, false},
		{"synchronous", unix.Timex{Status: 0x1, Tick: 10000}, true},
		{"another frequency", unix.Timex{Status: 0x40, Tick: 10000, Freq: -65536}, true},
		{"another tick", unix.Timex{Status: 0x40, Tick: 10001}, true},
	} {
		if got := disciplined(&c.timex); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
