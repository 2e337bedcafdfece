package vmm

import "slices"

// counted are the commands that Transitions counts: all but adoptions.
var counted = [...]Command{
	Start, Stop, Restart, Kill, Pause, Resume, exit, reboot, Take, Drop, Restore, Export,
}

// Transitions counts a command's transitions that have ended since the daemon's start.
type Transitions struct {
	Command      Command
	Done, Failed uint64
}

// Transitions returns the counts by command. It does not block.
func (m *Manager) Transitions() []Transitions {
	all := make([]Transitions, len(counted))
	for i, c := range counted {
		all[i] = Transitions{c, m.counts[i].done.Load(), m.counts[i].failed.Load()}
	}
	return all
}

func (m *Manager) count(c Command, err error) {
	i := slices.Index(counted[:], c)
	if i < 0 {
		return
	}
	if err == nil {
		m.counts[i].done.Add(1)
	} else {
		m.counts[i].failed.Add(1)
	}
}
