package host

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestClockLead expects that the difference of the clocks stays, however busy the machine is.
func TestClockLead(t *testing.T) {
	first, _, err := ClockLead(unix.CLOCK_REALTIME, unix.CLOCK_BOOTTIME)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		lead, at, err := ClockLead(unix.CLOCK_REALTIME, unix.CLOCK_BOOTTIME)
		if off := lead - first; err != nil || off.Abs() > 10*time.Millisecond {
			t.Fatalf("%v: off by %v", err, off)
		}
		if off := time.Since(time.Unix(0, at)); off < 0 || off > time.Minute {
			t.Errorf("the clock is %v behind", off)
		}
	}
	if _, _, err := ClockLead(unix.CLOCK_REALTIME, 99); err == nil {
		t.Error("there is a clock 99")
	}
}
