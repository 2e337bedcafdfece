package main

import (
	"context"
	"fmt"
	"time"

	"banger/internal/host"
	"banger/vmm/guest"

	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/timex.h.
const (
	adjSetOffset = 0x0100
	adjNano      = 0x2000
	adjSingle    = 0x8001 // ADJ_OFFSET_SINGLESHOT: what adjtime(3) does
	staUnsync    = 0x0040
	usualTick    = 10_000 // microseconds of a tick, at a USER_HZ of 100
)

// AdjustClock implements guest.Clock.
func (g *agent) AdjustClock(_ context.Context, a guest.Adjustment) (guest.ClockReading, error) {
	if a.By != 0 {
		if _, err := unix.Adjtimex(adjustment(a)); err != nil {
			return guest.ClockReading{}, fmt.Errorf("cannot set the clock: %w", err)
		}
	}
	var kernel unix.Timex
	if _, err := unix.Adjtimex(&kernel); err != nil {
		return guest.ClockReading{}, fmt.Errorf("cannot read the clock: %w", err)
	}
	steps, real, err := host.ClockLead(unix.CLOCK_REALTIME, unix.CLOCK_BOOTTIME)
	return guest.ClockReading{Real: real, Steps: steps, Disciplined: disciplined(&kernel)}, err
}

// adjustment returns the request of adjtimex(2).
func adjustment(a guest.Adjustment) *unix.Timex {
	if a.Slew {
		return &unix.Timex{Modes: adjSingle, Offset: a.By.Microseconds()}
	}
	// The kernel wants the nanoseconds to be positive, also of a step back.
	ns := a.By.Nanoseconds()
	seconds := ns / int64(time.Second)
	if ns %= int64(time.Second); ns < 0 {
		seconds, ns = seconds-1, ns+int64(time.Second)
	}
	return &unix.Timex{Modes: adjSetOffset | adjNano, Time: unix.Timeval{Sec: seconds, Usec: ns}}
}

// disciplined reports whether a program keeps the clock: it has declared it synchronous, or has
// changed its speed. A slew alone does neither.
func disciplined(t *unix.Timex) bool {
	return t.Status&staUnsync == 0 || t.Freq != 0 || t.Tick != usualTick
}
