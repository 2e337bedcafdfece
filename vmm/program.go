package vmm

import (
	"context"
	"errors"

	"banger/vmm/guest"
)

// followProgram learns, in the background, how the program of the guest's image ends. The agent
// keeps the guest from powering itself off until then, for some seconds. It does nothing if that
// machine is followed already, or has no agent with streams.
func (v *VM) followProgram(machine Machine) {
	agent, ok := machine.Guest().(guest.Streamer)
	v.mu.Lock()
	follows := ok && v.followed != machine
	if follows {
		v.followed = machine
	}
	v.mu.Unlock()
	if !follows {
		return
	}
	v.whileRuns(machine, func(ctx context.Context) {
		keep := func(end guest.End) {
			v.publish(func(s *Snapshot) {
				if s.Machine == machine {
					s.End = &end
				}
			})
		}
		insist(ctx, func() bool { // another request may break the connection
			err := guest.CollectEnd(ctx, agent, keep)
			return err == nil || errors.Is(err, ErrUnsupported)
		})
	})
}

// followAdopted greets the guest of an adopted machine. One that stops is only followed: it may
// wait for that before it is off.
func (v *VM) followAdopted(machine Machine, state State) {
	if state == Stopping {
		v.followProgram(machine)
		return
	}
	v.greet(machine)
}

// exitOf returns how an ended machine ended. If its guest powered itself off, how the program of
// its image ended is the reason for that.
func (v *VM) exitOf(machine Machine) Exit {
	exit := machine.Exit()
	s := v.Snapshot()
	if s.End == nil || s.Machine != machine || !exit.Orderly || exit.Rebooted {
		return exit
	}
	exit.Status, exit.Reason = &s.End.Status, "the program of its image ended"
	if s.End.Error != "" {
		exit.Orderly, exit.Reason = false, "its image cannot be run: "+s.End.Error
	}
	return exit
}
