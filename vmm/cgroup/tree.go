package cgroup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"banger/vmm"

	"golang.org/x/sys/unix"
)

// basePrefix begins the name of the directory of one daemon's groups. The instance follows.
const basePrefix = "banger-"

// daemonGroup is the group of version 2 that the daemon itself moves into.
const daemonGroup = "daemon"

// tree makes groups as directories. It is immutable.
type tree struct {
	log     *slog.Logger
	version string // for people
	unified bool
	bases   map[string]string // by controller; of version 2 all are the same
}

var _ vmm.Groups = (*tree)(nil)

// openLegacy returns the groups of the hierarchies of version 1, nil without any.
func openLegacy(log *slog.Logger, mounts, own map[string]string, instance string) *tree {
	t := &tree{log: log, version: "directories of version 1", bases: map[string]string{}}
	// cpuacct limits nothing. It counts for `stats`.
	for _, controller := range []string{"cpu", "cpuacct", "memory", "pids"} {
		mount, mounted := mounts[controller]
		group, in := own[controller]
		if !mounted || !in {
			continue
		}
		dir := filepath.Join(mount, group)
		if err := unix.Access(dir, unix.W_OK); err != nil {
			log.Info("no limits by a controller", "controller", controller, "err", err)
			continue
		}
		t.bases[controller] = filepath.Join(dir, basePrefix+instance) // the first VM makes it
	}
	if len(t.controllers()) == 0 {
		return nil
	}
	return t
}

// openUnified returns the groups of version 2 below the daemon's own group, nil if it may make none
// there or the hierarchy has no controller.
func openUnified(log *slog.Logger, mounts, own map[string]string, instance string) *tree {
	mount, mounted := mounts[""]
	group, in := own[""]
	if !mounted || !in {
		return nil
	}
	name := basePrefix + instance
	// A daemon that was started by a daemon of this state directory is in its group.
	group = strings.TrimSuffix(group, "/"+name+"/"+daemonGroup)
	dir := filepath.Join(mount, group)
	there := words(filepath.Join(dir, "cgroup.controllers"))
	wanted := slices.DeleteFunc([]string{"cpu", "memory", "pids"}, func(c string) bool {
		return !slices.Contains(there, c)
	})
	if len(wanted) == 0 || booted() && !delegated(dir) {
		return nil
	}
	base := filepath.Join(dir, name)
	err := os.Mkdir(base, 0o755)
	if err == nil || errors.Is(err, os.ErrExist) {
		if err = enable(dir, wanted); errors.Is(err, unix.EBUSY) {
			// No group with processes hands controllers on, unless it is the root.
			if err = leave(dir, base); err == nil {
				err = enable(dir, wanted)
			}
		}
	}
	if err == nil {
		err = enable(base, wanted)
	}
	if err != nil {
		log.Warn("no limits by cgroups of version 2", "below", dir, "err", err)
		_ = os.Remove(base) // unless it has groups of VMs
		return nil
	}
	t := &tree{log: log, version: "directories of version 2", unified: true,
		bases: map[string]string{}}
	for _, controller := range wanted {
		t.bases[controller] = base
	}
	return t
}

// delegated reports whether systemd has given a group away (systemd's CGROUP_DELEGATION.md).
func delegated(dir string) bool {
	for _, name := range []string{"trusted.delegate", "user.delegate"} {
		var mark [8]byte
		n, err := unix.Getxattr(dir, name, mark[:])
		if err == nil && n == 1 && mark[0] == '1' {
			return true
		}
	}
	return false
}

// words returns the words of a small file, none if it cannot be read.
func words(path string) []string {
	text, _ := os.ReadFile(path)
	return strings.Fields(string(text))
}

// enable hands controllers of a group on to the groups in it.
func enable(dir string, wanted []string) error {
	path := filepath.Join(dir, "cgroup.subtree_control")
	has := words(path)
	for _, controller := range wanted {
		if slices.Contains(has, controller) {
			continue
		}
		if err := write(path, "+"+controller); err != nil {
			return err
		}
	}
	return nil
}

// leave moves the daemon out of a group in which it is alone. Processes that are not the daemon's
// own stay where they are.
func leave(dir, base string) error {
	self := strconv.Itoa(os.Getpid())
	if all := words(filepath.Join(dir, "cgroup.procs")); len(all) != 1 || all[0] != self {
		return fmt.Errorf("%d other processes are in it: start bangerd in a group of its own: %w",
			len(all)-1, unix.EBUSY)
	}
	to := filepath.Join(base, daemonGroup)
	if err := os.Mkdir(to, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return write(filepath.Join(to, "cgroup.procs"), self)
}

// write writes a file of a group in one write(2), whose error is the kernel's answer.
func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0) // which means nothing there
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// controllers returns those that limit something, sorted.
func (t *tree) controllers() []string {
	var all []string
	for controller := range t.bases {
		if controller != "cpuacct" {
			all = append(all, controller)
		}
	}
	slices.Sort(all)
	return all
}

// Lacks implements vmm.Groups.
func (t *tree) Lacks() map[vmm.Feature]string {
	return lacks(t.controllers(), "mount it, or enable it in the cgroup.subtree_control above "+
		"bangerd's own group, and restart bangerd")
}

// Join implements vmm.Groups.
func (t *tree) Join(
	ctx context.Context, id, _ string, pid int, l *vmm.Limits,
) (vmm.Group, error) {
	g := t.group(id)
	g.known = true
	for _, dir := range g.all {
		err := os.Mkdir(dir, 0o755)
		switch {
		case errors.Is(err, os.ErrExist): // it could not be removed, and has its old limits
			g.known = false
		case errors.Is(err, os.ErrNotExist): // it is the first
			err = os.MkdirAll(dir, 0o755)
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			g.Remove()
			return nil, fmt.Errorf("cannot make its cgroup: %w", err)
		}
	}
	err := g.Limit(ctx, l)
	for _, dir := range g.all {
		if err == nil {
			err = write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid))
		}
	}
	if err != nil {
		g.Remove()
		return nil, err
	}
	return g, nil
}

// Find implements vmm.Groups.
func (t *tree) Find(id string, pid int) vmm.Group {
	g, in := t.group(id), groupsOf(pid)
	for controller, dir := range g.dirs {
		if t.unified {
			controller = ""
		}
		if !strings.HasSuffix(dir, in[controller]) || filepath.Base(in[controller]) != id {
			return nil
		}
	}
	return g
}

// Drop implements vmm.Groups.
func (t *tree) Drop(id string) { t.group(id).Remove() }

// Sweep implements vmm.Groups. The kernel removes no group that has a process.
func (t *tree) Sweep() {
	for _, base := range t.bases {
		entries, err := os.ReadDir(base)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.log.Warn("cannot look for cgroups that were left", "err", err)
		}
		for _, e := range entries {
			if e.IsDir() && e.Name() != daemonGroup {
				_ = os.Remove(filepath.Join(base, e.Name()))
			}
		}
	}
}

// Close implements vmm.Groups.
func (t *tree) Close() {
	t.Sweep()
	for _, base := range t.bases {
		_ = os.Remove(base) // unless VMs go on, or the daemon is in it
	}
}

// group is a VM's group, in one or several hierarchies.
type group struct {
	unified bool
	dirs    map[string]string // by controller
	all     []string          // each directory once
	limits  vmm.Limits        // in force
	known   bool              // limits are what is in force
}

func (t *tree) group(id string) *group {
	g := &group{unified: t.unified, dirs: map[string]string{}}
	for controller, base := range t.bases {
		dir := filepath.Join(base, id)
		g.dirs[controller] = dir
		if !slices.Contains(g.all, dir) {
			g.all = append(g.all, dir)
		}
	}
	slices.Sort(g.all)
	return g
}

// Limit implements vmm.Group.
func (g *group) Limit(_ context.Context, l *vmm.Limits) error {
	for i := range knobs {
		k := &knobs[i]
		if g.known && k.same(&g.limits, l) {
			continue
		}
		err := g.set(k, l)
		if err == nil {
			continue
		}
		for j := 0; g.known && j <= i; j++ {
			_ = g.set(&knobs[j], &g.limits) // the kernel has accepted it before
		}
		return fmt.Errorf("%s is refused: %w", k.feature, err)
	}
	g.limits, g.known = *l, true
	return nil
}

// set writes the files of one limit.
func (g *group) set(k *knob, l *vmm.Limits) error {
	controller := controllers[k.feature]
	dir := g.dirs[controller]
	if dir == "" {
		if k.same(&vmm.Limits{}, l) {
			return nil
		}
		return fmt.Errorf("%w: the cgroup controller %s is not here",
			vmm.ErrUnsupported, controller)
	}
	settings := k.legacy(l)
	if g.unified {
		settings = k.unified(l)
	}
	for _, s := range settings {
		if err := write(filepath.Join(dir, s.file), s.text); err != nil {
			return err
		}
	}
	return nil
}

const (
	removeTries = 20
	removePause = 10 * time.Millisecond
)

// Remove implements vmm.Group. A process that init has yet to reap keeps its group for a moment.
func (g *group) Remove() {
	for try := range removeTries {
		busy := false
		for _, dir := range g.all {
			busy = errors.Is(os.Remove(dir), unix.EBUSY) || busy
		}
		if !busy || try == removeTries-1 { // the next Sweep removes it
			return
		}
		time.Sleep(removePause)
	}
}
