package vmm

import (
	"context"
	"errors"
	"time"

	"banger/internal/host"
	"banger/vmm/guest"

	"golang.org/x/sys/unix"
)

// A guest's clock is set to the host's after each standstill, and its drift is corrected once a
// minute. The sweep finds the clocks that are due.

// clockEvery is the time between two corrections of a guest's drift. Tests change it.
var clockEvery = time.Minute

// clockWait bounds the wait for the answers of one guest. Tests change it.
var clockWait = 3 * time.Second

const (
	clocksAtOnce  = 32                     // guests that a round asks side by side
	clockFirst    = 10 * time.Second       // until the first correction after a standstill
	clockSoonest  = 2 * time.Second        // between two corrections of a clock that drifts much
	clockRetry    = time.Second            // until a clock that was not set is tried again
	clockReadings = 5                      // of which the fastest counts
	fastReading   = 50 * time.Millisecond  // one as fast needs no other
	clockExact    = 20 * time.Millisecond  // a smaller error is none
	clockStep     = 500 * time.Millisecond // a smaller drift is slewed
	// clockMoved is the least change of the host's own clock, or the least sleep, that matters.
	clockMoved = 200 * time.Millisecond
)

// guestClock is what is known of a guest's clock.
type guestClock struct {
	stood  bool          // the guest stood still: its clock is set, whoever set it last
	active bool          // a goroutine works on it
	due    time.Time     // for the next correction
	retry  time.Duration // until a clock that could not be set is tried again
	run    uint64        // whose guest has the clock that the fields below are about
	absent bool          // its agent cannot adjust it
	// kept is true from a setting by banger until another steps the clock, whose setting stays.
	kept  bool
	steps time.Duration // of the last reading by which it is kept
	read  time.Time     // when it was last exact
}

// setClock sets the guest's clock after a standstill, in the background.
func (v *VM) setClock() { v.clockDue(true) }

// greetClock sets the clock of a guest whose agent has just accepted its settings.
func (v *VM) greetClock(ctx context.Context, machine Machine) {
	v.mu.Lock()
	v.clock.stood, v.clock.due = true, time.Time{}
	v.mu.Unlock()
	if s := v.Snapshot(); s.Machine == machine {
		v.adjustClock(ctx, s)
	}
}

// clockDue makes a correction of the clock due and begins it.
func (v *VM) clockDue(stood bool) {
	v.mu.Lock()
	v.clock.stood = v.clock.stood || stood
	v.clock.due = time.Time{}
	v.mu.Unlock()
	v.m.spawn(v.tendClock)
}

// tendClock sets or corrects the guest's clock, if that is due and no other goroutine does it.
func (v *VM) tendClock() {
	s := v.Snapshot()
	if s.State != Running || !s.Ready {
		return // a resume and a greeting set it
	}
	ctx, cancel := endsWith(v.m.ctx, s.Machine.Done())
	defer cancel()
	v.adjustClock(ctx, s)
}

// adjustClock is tendClock for a guest whose agent has answered. It blocks for clockWait at most,
// and again for each standstill meanwhile.
func (v *VM) adjustClock(ctx context.Context, s *Snapshot) {
	for {
		v.mu.Lock()
		c := v.clock
		if c.active || time.Now().Before(c.due) {
			v.mu.Unlock()
			return
		}
		v.clock.active, v.clock.stood = true, false
		v.mu.Unlock()
		if c.run != s.Run {
			c = guestClock{run: s.Run, stood: c.stood}
		}
		off, err := c.adjust(ctx, s.Agent())
		if c.stood && off.Abs() >= clockStep {
			v.logf("the guest's clock was set: it was %v %s", off.Abs().Round(time.Millisecond),
				map[bool]string{false: "behind", true: "ahead"}[off > 0])
		}
		c.settle(off, err, v.clockPeriod())
		v.mu.Lock()
		again := v.clock.stood // since then
		if again {
			c.stood, c.due = true, time.Time{}
		}
		v.clock = c
		v.mu.Unlock()
		if !again {
			return
		}
	}
}

// settle decides when the clock is due again, after an adjustment with that result. That is after
// the period, or sooner if the clock would be off by clockStep before: an emulated guest under load
// may lose most of the time.
func (c *guestClock) settle(off time.Duration, err error, period time.Duration) {
	now := time.Now()
	if share := float64(off.Abs()) / float64(clockStep); c.stood {
		period = min(clockFirst, period)
	} else if share > 0 {
		soon := time.Duration(float64(now.Sub(c.read)) / share)
		period = min(max(soon, clockSoonest), period)
	}
	c.active, c.due, c.read = false, now.Add(period), now
	if err == nil || !c.stood {
		c.stood, c.retry = false, 0
		return
	}
	c.retry = min(max(clockRetry, 2*c.retry), period) // a busy guest, or one that hangs
	c.due = now.Add(c.retry)
}

// clockPeriod differs between VMs, so that those that a daemon adopted are not due all at once.
func (v *VM) clockPeriod() time.Duration {
	return clockEvery - clockEvery*time.Duration(v.serial%16)/64
}

// adjust sets the clock if the guest stood still. Otherwise it corrects the drift of a clock that
// no other program sets. It returns how far the clock was ahead.
func (c *guestClock) adjust(ctx context.Context, agent guest.Agent) (time.Duration, error) {
	clock, ok := agent.(guest.Clock)
	if !ok || c.absent || !c.kept && !c.stood {
		return 0, nil
	}
	// No deadline: a client ends the whole session with an agent that misses one, and with it the
	// commands of users. A busy guest's clock can wait.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(clockWait, cancel).Stop()
	reading, off, err := readGuestClock(ctx, clock)
	if errors.Is(err, ErrUnsupported) {
		c.absent = true
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if !c.stood && (reading.Disciplined || (reading.Steps-c.steps).Abs() > clockExact) {
		c.kept = false
		return 0, nil
	}
	if off != 0 {
		slew := !c.stood && off.Abs() < clockStep
		reading, err = clock.AdjustClock(ctx, guest.Adjustment{By: -off, Slew: slew})
	}
	if err == nil {
		c.kept, c.steps = true, reading.Steps
	}
	return off, err
}

// readGuestClock returns how far the guest's clock is ahead of the host's, 0 if that is exact. The
// guest has read it somewhere between the request and the answer, so that of some readings the
// fastest counts.
func readGuestClock(
	ctx context.Context, clock guest.Clock,
) (best guest.ClockReading, off time.Duration, err error) {
	took := time.Duration(-1)
	for range clockReadings {
		asked := time.Now()
		r, err := clock.AdjustClock(ctx, guest.Adjustment{})
		if err != nil && took >= 0 {
			return best, off, nil // one is enough
		}
		if err != nil {
			return r, 0, err
		}
		if d := time.Since(asked); took < 0 || d < took {
			took, best = d, r
			off = time.Duration(r.Real - asked.UnixNano() - d.Nanoseconds()/2)
		}
		if off.Abs() < clockExact || took < fastReading {
			break
		}
	}
	if off.Abs() < max(clockExact, took/2) { // no more is known
		off = 0
	}
	return best, off, nil
}

// hostClock is the host's own clocks at one moment.
type hostClock struct {
	slept time.Duration // CLOCK_BOOTTIME goes on in a suspend, CLOCK_MONOTONIC does not
	wall  time.Duration // steps of the wall clock change how far it is ahead of CLOCK_BOOTTIME
}

// readHostClock reads the host's clocks. Tests change it.
var readHostClock = func() (h hostClock) {
	var err, err2 error
	h.slept, _, err = host.ClockLead(unix.CLOCK_BOOTTIME, unix.CLOCK_MONOTONIC)
	h.wall, _, err2 = host.ClockLead(unix.CLOCK_REALTIME, unix.CLOCK_BOOTTIME)
	if err != nil || err2 != nil {
		return hostClock{} // a kernel without these clocks
	}
	return h
}

// tendClocks begins a round over the clocks that are due. After a sleep of the host all are, for
// their guests stood still, and after a step of the host's clock as well. It does not block. A
// round that is not yet over delays the next one.
func (m *Manager) tendClocks(was *hostClock) {
	now := readHostClock()
	slept := (now.slept - was.slept).Abs() > clockMoved
	stepped := (now.wall - was.wall).Abs() > clockMoved
	*was = now
	if slept || stepped {
		for _, v := range m.VMs() {
			v.mu.Lock()
			v.clock.stood = v.clock.stood || slept
			v.clock.due = time.Time{}
			v.mu.Unlock()
		}
	}
	if !m.clocks.CompareAndSwap(false, true) {
		return
	}
	var due []*VM
	for _, v := range m.VMs() {
		if s := v.Snapshot(); s.State == Running && s.Ready && v.clockIsDue() {
			due = append(due, v)
		}
	}
	if len(due) == 0 || !m.spawn(func() { m.clockRound(due) }) {
		m.clocks.Store(false)
	}
}

func (v *VM) clockIsDue() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	c := &v.clock
	return !c.active && !time.Now().Before(c.due) && (c.stood || c.kept)
}

// clockRound tends these clocks and returns when each was tended.
func (m *Manager) clockRound(due []*VM) {
	defer m.clocks.Store(false)
	slots := make(chan struct{}, clocksAtOnce)
	for _, v := range due {
		slots <- struct{}{} // the guests' answers are bounded
		begun := m.spawn(func() {
			defer func() { <-slots }()
			v.tendClock()
		})
		if !begun {
			<-slots
		}
	}
	for range clocksAtOnce {
		slots <- struct{}{}
	}
}
