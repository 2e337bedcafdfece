package fs

import (
	"fmt"

	"banger/vmm"
)

// commands are the words that `state` accepts. A state stands for the command that leads to it.
var commands = map[string]vmm.Command{
	"start": vmm.Start, "running": vmm.Start,
	"stop": vmm.Stop, "stopped": vmm.Stop,
	"pause": vmm.Pause, "paused": vmm.Pause,
	"restart": vmm.Restart, "kill": vmm.Kill, "resume": vmm.Resume,
}

func stateShow(r *request) ([]byte, error) { return line(string(r.snap().State)) }

func stateStore(w *writeRequest, text string) error {
	c, ok := commands[text]
	if !ok {
		return fmt.Errorf("cannot change %s: %.64q is not a command; "+
			"write start, stop, restart, kill, pause or resume: %w",
			w.snap().Name, text, vmm.ErrInvalid)
	}
	if w.nonblock {
		return w.vm.Accept(w.ctx, c)
	}
	return w.vm.Do(w.ctx, c)
}
