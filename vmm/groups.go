package vmm

import "context"

// Groups give each VMM a cgroup of its own (cgroups(7)). Implemented by vmm/cgroup.
type Groups interface {
	// Lacks returns why the kernel cannot enforce a limit here, by its feature. A feature without
	// an entry can be enforced. It returns the same at every call.
	Lacks() map[Feature]string
	// Join makes the group of the VM with that UUID and name, puts limits in force in it, and moves
	// the process with all of its threads into it. After an error there is no group. It blocks for
	// some milliseconds, until ctx ends at the latest.
	Join(ctx context.Context, id, name string, pid int, l *Limits) (Group, error)
	// Find returns the group of a VM's process, nil if it has none of its own.
	Find(id string, pid int) Group
	// Drop removes what there is of the group of a VM whose process has ended: a daemon that was
	// killed may have left it half made.
	Drop(id string)
	// Sweep removes the groups that an earlier daemon left without a process.
	Sweep()
	// Close removes what no VM uses, at the daemon's end.
	Close()
}

// Group is a cgroup with one VMM. One goroutine at a time uses it.
type Group interface {
	// Limit puts limits in force in place of those before. After an error those before are.
	// ErrUnsupported for one that the host lacks. It ignores IOMax and NetMax.
	Limit(ctx context.Context, l *Limits) error
	// Remove removes the group of a process that has ended.
	Remove()
}
