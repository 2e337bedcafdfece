// Package doctor examines whether a host has what banger needs, and says what to type where it does
// not. A check is a row of a table with a function. Checks only look: what they make, as a guest of
// ten instructions and a table of nftables, is in namespaces and processes of their own and gone
// with them. Each is bounded in time.
//
// It imports leaves only. All files are below [Host.Root], so that tests have hosts as directories.
// Each check runs in a goroutine of its own. One that its time does not end, because the kernel
// does not return, is left behind.
package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"banger/internal/printable"
)

// Words of Result.Status.
const (
	OK   = "ok"
	Warn = "warn" // banger works, with less or slowly
	Fail = "fail" // something that banger needs is missing
)

// limit is how long a check may take, and heavyLimit a heavy one. A guest of ten instructions takes
// half a second on a host that is emulated itself.
const (
	limit      = 2 * time.Second
	heavyLimit = 5 * time.Second
)

// Result is what one check found, in one line. Remedy is what to type, empty where nothing is to be
// done. Both may hold text of the host's files: WriteText and WriteJSON escape it.
type Result struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Found  string `json:"found"`
	Remedy string `json:"remedy"`
}

// finding is what a check returns: a Result without its name.
type finding struct{ status, found, remedy string }

func ok(format string, args ...any) finding {
	return finding{OK, fmt.Sprintf(format, args...), ""}
}

func warn(remedy, format string, args ...any) finding {
	return finding{Warn, fmt.Sprintf(format, args...), remedy}
}

func fail(remedy, format string, args ...any) finding {
	return finding{Fail, fmt.Sprintf(format, args...), remedy}
}

// Examine runs all checks that matter to the daemon of the host's user, side by side, and returns
// their results in the order of the table. It blocks for the time of the heavy checks at most.
func Examine(ctx context.Context, h *Host) []Result {
	var rows []check
	for _, c := range checks {
		if c.of == both || (c.of == rootOnly) == (h.UID == 0) {
			rows = append(rows, c)
		}
	}
	all := make([]Result, len(rows))
	turn := make(chan struct{}, 1) // of the heavy checks, which would make each other slow
	var wg sync.WaitGroup
	for i, c := range rows {
		wg.Go(func() {
			f := c.run(ctx, h, turn)
			all[i] = Result{c.name, f.status, f.found, f.remedy}
		})
	}
	wg.Wait()
	return all
}

// run runs a check. It returns in time also where the check does not.
func (c check) run(ctx context.Context, h *Host, turn chan struct{}) finding {
	most := limit
	if c.heavy {
		most = heavyLimit
		turn <- struct{}{}
		defer func() { <-turn }()
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	answer := make(chan finding, 1)
	go func() { answer <- c.look(h, ctx) }()
	select {
	case f := <-answer:
		return f
	case <-time.After(most + limit/4): // one that ends by its time says more than this
		return warn("banger doctor", "no answer within %v; try again when the host is less busy", most)
	}
}

// Failed reports whether something that banger needs is missing.
func Failed(all []Result) bool {
	for _, r := range all {
		if r.Status == Fail {
			return true
		}
	}
	return false
}

// WriteText writes a line for each result: its status, its name, what was found and what to type.
func WriteText(w io.Writer, all []Result) error {
	for _, r := range all {
		text := r.Found
		if r.Remedy != "" {
			text += "; " + r.Remedy
		}
		_, err := fmt.Fprintf(w, "%-4s  %-16s  %s\n", r.Status, r.Name, printable.Message(text))
		if err != nil {
			return err
		}
	}
	return nil
}

// WriteJSON writes the results as one array.
func WriteJSON(w io.Writer, all []Result) error {
	b, err := json.MarshalIndent(all, "", "  ")
	if err == nil {
		_, err = w.Write(append(printable.JSON(b), '\n'))
	}
	return err
}
