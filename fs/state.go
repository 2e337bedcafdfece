package fs

import (
	"fmt"
	"time"

	"banger/internal/value"
	"banger/vmm"
)

// commands are the words that `state` takes; the words that it gives stand for the state wanted.
var commands = map[string]vmm.Command{
	"start": vmm.Start, "running": vmm.Start,
	"stop": vmm.Stop, "stopped": vmm.Stop,
	"pause": vmm.Pause, "paused": vmm.Pause,
	"restart": vmm.Restart, "kill": vmm.Kill, "resume": vmm.Resume,
}

func stateShow(r *request) ([]byte, error) { return line(string(r.snap().State)) }

func stateStore(r *request, text string) error {
	c, ok := commands[text]
	if !ok {
		return fmt.Errorf("cannot tell %s: %.64q is not a command; write start, stop, restart, kill, pause or resume: %w", r.snap().Name, text, vmm.ErrInvalid)
	}
	if r.nonblock {
		return r.vm.Accept(r.ctx, c)
	}
	return r.vm.Do(r.ctx, c)
}

func touchedShow(r *request) ([]byte, error) { return line(value.FormatTime(r.vm.Touched())) }

func touchedStore(r *request, text string) error {
	if text == "" {
		r.vm.Touch()
		return nil
	}
	t, err := value.ParseTime(text)
	if err != nil {
		return fmt.Errorf("cannot set touched of %s: %w", r.snap().Name, err)
	}
	r.vm.SetTouched(minTime(t, time.Now()))
	return nil
}

// minTime keeps a lease from being renewed into the future.
func minTime(a, b time.Time) time.Time {
	if a.After(b) {
		return b
	}
	return a
}

// fact is a row that shows one word of the snapshot.
func fact(name, doc string, get func(*vmm.Snapshot) string) file {
	return file{name: name, mode: 0o440, doc: doc, show: func(r *request) ([]byte, error) { return line(get(r.snap())) }}
}
