// Package cgroup gives each VMM a cgroup of its own, in which the kernel limits it.
//
// There are three ways. Where systemd runs, a VMM is a transient scope of systemd's in the slice
// banger.slice: no group is made that systemd does not know, and a VMM outlives the daemon's unit.
// Otherwise groups are directories, of version 2 or of version 1 of cgroups(7), below the daemon's
// own group. Without any of them limits are refused. The daemon chooses once, at its start.
//
// The package starts no goroutine of its own. The D-Bus library has one for each connection.
package cgroup

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"banger/internal/host"
	"banger/vmm"
)

// controllers of the kernel that enforce limits.
var controllers = map[vmm.Feature]string{
	vmm.FeatureCPUMax: "cpu", vmm.FeatureCPUWeight: "cpu",
	vmm.FeatureMemoryMax: "memory", vmm.FeaturePIDsMax: "pids",
}

// Open chooses how VMMs get groups here. instance is the UUID of the daemon's state directory, by
// which the next daemon finds its groups. It never fails: the log says what the host lacks.
func Open(log *slog.Logger, instance string) vmm.Groups {
	if booted() {
		s, err := openSystemd(log)
		if err == nil {
			log.Info("cgroups", "by", "scopes of systemd", "controllers", s.controllers)
			return s
		}
		log.Warn("VMMs end with the daemon's unit unless that has KillMode=process: "+
			"systemd gives them no scopes", "err", err)
	}
	info, _ := os.ReadFile("/proc/self/mountinfo") // nothing is mounted, then
	own, _ := os.ReadFile("/proc/self/cgroup")
	mounts, groups := host.CgroupMounts(info), host.ParseCgroup(own)
	t := openUnified(log, mounts, groups, instance)
	if t == nil {
		t = openLegacy(log, mounts, groups, instance)
	}
	if t == nil {
		log.Info("cgroups", "by", "none")
		return none{}
	}
	log.Info("cgroups", "by", t.version, "controllers", t.controllers())
	return t
}

// booted reports whether systemd is the host's init (sd_booted(3)).
func booted() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// lacks returns the limits whose controllers are not among those there, with a remedy.
func lacks(there []string, remedy string) map[vmm.Feature]string {
	why := make(map[vmm.Feature]string)
	has := " " + strings.Join(there, " ") + " "
	for feature, controller := range controllers {
		if !strings.Contains(has, " "+controller+" ") {
			why[feature] = fmt.Sprintf("the kernel's cgroup controller %s is not here: %s",
				controller, remedy)
		}
	}
	return why
}

// none is a host without cgroups that the daemon may use.
type none struct{}

const noneRemedy = "run bangerd as root under systemd, or mount cgroup2 on /sys/fs/cgroup, " +
	"and restart it"

// Lacks implements vmm.Groups.
func (none) Lacks() map[vmm.Feature]string { return lacks(nil, noneRemedy) }

// Join implements vmm.Groups. The process stays in the daemon's group.
func (n none) Join(ctx context.Context, _, _ string, _ int, l *vmm.Limits) (vmm.Group, error) {
	return n, n.Limit(ctx, l)
}

// Find implements vmm.Groups.
func (none) Find(string, int) vmm.Group { return nil }

// Sweep implements vmm.Groups.
func (none) Sweep() {}

// Drop implements vmm.Groups.
func (none) Drop(string) {}

// Close implements vmm.Groups.
func (none) Close() {}

// Limit implements vmm.Group.
func (n none) Limit(_ context.Context, l *vmm.Limits) error {
	if len(changes(&vmm.Limits{}, l)) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", vmm.ErrUnsupported, noneRemedy)
}

// Remove implements vmm.Group.
func (none) Remove() {}

// groupsOf returns the groups of a process by controller.
func groupsOf(pid int) map[string]string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil
	}
	return host.ParseCgroup(text)
}
