package fake

import (
	"context"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
)

// AdjustClock implements guest.Clock. A slew has its whole effect at once.
func (g agent) AdjustClock(ctx context.Context, a guest.Adjustment) (guest.ClockReading, error) {
	s := &g.m.script
	switch s.clock {
	case "old":
		return guest.ClockReading{}, vmm.ErrUnsupported
	case "hang":
		return guest.ClockReading{}, g.m.wait(ctx, nil)
	}
	if err := g.answer(ctx); err != nil {
		return guest.ClockReading{}, err
	}
	var r guest.ClockReading
	err := g.m.keep(func(k *kept) {
		if a.Slew {
			k.Slewed += a.By
		} else {
			k.Steps += a.By
		}
		age := g.m.age()
		age += time.Duration(float64(age) * s.drift)
		r.Real, r.Steps = int64(age+k.Steps+k.Slewed), k.Steps
	})
	r.Disciplined = s.clock == "ntp"
	return r, err
}
