package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Clock is an Agent that can read the guest's wall clock and set it.
type Clock interface {
	// AdjustClock changes the clock as asked, and reads it after that. The zero Adjustment only
	// reads. ErrUnsupported for an agent of an earlier version.
	AdjustClock(ctx context.Context, a Adjustment) (ClockReading, error)
}

// Adjustment is a change of the guest's clock. It is relative, so that it is as exact however long
// it is on its way.
type Adjustment struct {
	By time.Duration `json:"by_ns,omitempty"`
	// Slew changes the clock's speed a little until the time is right (adjtime(3)). Otherwise the
	// clock steps.
	Slew bool `json:"slew,omitempty"`
}

// ClockReading is the guest's wall clock at one moment.
type ClockReading struct {
	Real int64 `json:"real_ns"` // CLOCK_REALTIME, since 1970
	// Steps is how far the wall clock is ahead of CLOCK_BOOTTIME. Only steps of the wall clock
	// change it: both are as slow, or as fast.
	Steps time.Duration `json:"steps_ns"`
	// Disciplined is true while a program in the guest keeps the clock's speed, as chrony does.
	Disciplined bool `json:"disciplined"`
}

func handleClock(mux *http.ServeMux, c Clock) {
	mux.HandleFunc("POST /clock", func(w http.ResponseWriter, r *http.Request) {
		var a Adjustment
		body := http.MaxBytesReader(w, r.Body, 4<<10)
		if err := json.NewDecoder(body).Decode(&a); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		reading, err := c.AdjustClock(r.Context(), a)
		answer(w, reading, err)
	})
}

// AdjustClock implements [Clock].
func (c *Client) AdjustClock(ctx context.Context, a Adjustment) (ClockReading, error) {
	var r ClockReading
	b, err := c.do(ctx, http.MethodPost, "/clock", a)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if bad := (*badAnswer)(nil); errors.As(err, &bad) && bad.status == http.StatusNotFound {
		err = fmt.Errorf("the agent cannot set the clock: %w", ErrUnsupported)
	}
	return r, err
}
