package host

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// ClockLead returns how far one clock of clock_gettime(2) is ahead of another, and the time of the
// first, in nanoseconds. It returns the closest of some pairs of readings, so that a preemption in
// between does no harm.
func ClockLead(of, over int32) (lead time.Duration, at int64, err error) {
	best := int64(math.MaxInt64)
	for range 8 {
		var before, middle, after unix.Timespec
		for _, read := range []struct {
			clock int32
			to    *unix.Timespec
		}{{over, &before}, {of, &middle}, {over, &after}} {
			if err := unix.ClockGettime(read.clock, read.to); err != nil {
				return 0, 0, fmt.Errorf("cannot read the clock: %w", err)
			}
		}
		if gap := after.Nano() - before.Nano(); gap < best {
			best, at = gap, middle.Nano()
			lead = time.Duration(at - before.Nano() - gap/2)
		}
	}
	return lead, at, nil
}
