package guest

import (
	"context"
	"errors"
	"testing"
	"time"
)

// clockAnswers is a guest whose clock can be set.
type clockAnswers struct {
	answers
	got Adjustment
}

func (a *clockAnswers) AdjustClock(_ context.Context, by Adjustment) (ClockReading, error) {
	a.got = by
	return ClockReading{Real: 5, Steps: by.By, Disciplined: true}, nil
}

func TestAdjustClock(t *testing.T) {
	var g clockAnswers
	path, _ := serveGuest(t, &g, false)
	c := NewClient(dialUnix(path), nil)
	defer c.Close()
	want := Adjustment{By: -8 * time.Second, Slew: true}
	r, err := c.AdjustClock(t.Context(), want)
	if err != nil || g.got != want || r != (ClockReading{5, want.By, true}) {
		t.Errorf("%+v, %v; the guest has received %+v", r, err, g.got)
	}
}

// An agent of an earlier version has no such request.
func TestAdjustClockOfAnEarlierAgent(t *testing.T) {
	path, _ := serveGuest(t, &answers{}, false)
	c := NewClient(dialUnix(path), nil)
	defer c.Close()
	if _, err := c.AdjustClock(t.Context(), Adjustment{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("%v, want %v", err, ErrUnsupported)
	}
	if _, err := c.Ping(t.Context()); err != nil { // the session goes on
		t.Error(err)
	}
}
