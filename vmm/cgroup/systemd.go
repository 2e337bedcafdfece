package cgroup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/internal/host"
	"banger/vmm"

	"github.com/godbus/dbus/v5"
)

const (
	busTime     = 5 * time.Second // for all of one call
	scopeTick   = time.Millisecond
	scopeSuffix = ".scope"
	managerName = "org.freedesktop.systemd1"
	managerPath = "/org/freedesktop/systemd1"
	manager     = managerName + ".Manager"
)

// systemd gives VMMs transient scopes, which systemd makes and limits
// (org.freedesktop.systemd1(5) and systemd.scope(5)). A scope ends with its last process, so that
// nothing is ever left.
type systemd struct {
	log         *slog.Logger
	user        bool     // the user's own manager
	controllers []string // immutable, as the fields above

	mu   sync.Mutex
	conn *dbus.Conn // made again once it is broken
}

var _ vmm.Groups = (*systemd)(nil)

// openSystemd connects to the host's systemd or, as an ordinary user, to the user's own.
func openSystemd(log *slog.Logger) (*systemd, error) {
	s := &systemd{log: log, user: os.Getuid() != 0}
	ctx, cancel := context.WithTimeout(context.Background(), busTime)
	defer cancel()
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	v, err := conn.Object(managerName, managerPath).GetProperty(manager + ".ControlGroup")
	if err != nil {
		return nil, err
	}
	root, _ := v.Value().(string)
	s.controllers = handedOn(root)
	return s, nil
}

// handedOn returns the controllers that a manager with the group root may hand on.
func handedOn(root string) []string {
	info, _ := os.ReadFile("/proc/self/mountinfo")
	mounts := host.CgroupMounts(info)
	if mount, ok := mounts[""]; ok {
		if all := words(filepath.Join(mount, root, "cgroup.controllers")); len(all) > 0 {
			return all
		}
	}
	var all []string
	for _, controller := range []string{"cpu", "memory", "pids"} {
		if _, ok := mounts[controller]; ok {
			all = append(all, controller)
		}
	}
	return all
}

// connect returns a connection to the bus.
func (s *systemd) connect(ctx context.Context) (*dbus.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil && s.conn.Connected() {
		return s.conn, nil
	}
	dial := dbus.ConnectSystemBus
	if s.user {
		dial = dbus.ConnectSessionBus
	}
	conn, err := dial() // its goroutines live as long as it does, not as long as ctx
	if err != nil {
		return nil, fmt.Errorf("systemd cannot be reached over D-Bus: %w", err)
	}
	s.conn = conn
	return conn, nil
}

// call calls a method of systemd's manager.
func (s *systemd) call(ctx context.Context, method string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, busTime)
	defer cancel()
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	return conn.Object(managerName, managerPath).CallWithContext(ctx, manager+"."+method, 0,
		args...).Err
}

// busProperty is a property as systemd's methods take it.
type busProperty struct {
	Name  string
	Value dbus.Variant
}

// busAux is a unit that StartTransientUnit makes too; there is none.
type busAux struct {
	Name       string
	Properties []busProperty
}

// Lacks implements vmm.Groups.
func (s *systemd) Lacks() map[vmm.Feature]string {
	remedy := "boot the kernel with it"
	if s.user {
		remedy = "let root write Delegate=cpu memory pids to a drop-in of user@.service"
	}
	return lacks(s.controllers, remedy)
}

// Join implements vmm.Groups. The scope is named after the VM, or after its UUID as well where a VM
// of another daemon has the name.
func (s *systemd) Join(
	ctx context.Context, id, name string, pid int, l *vmm.Limits,
) (vmm.Group, error) {
	ctx, cancel := context.WithTimeout(ctx, busTime)
	defer cancel()
	properties := []busProperty{
		{"Description", dbus.MakeVariant("banger's VM " + name)},
		{"Slice", dbus.MakeVariant("banger.slice")},
		{"PIDs", dbus.MakeVariant([]uint32{uint32(pid)})},
		{"CollectMode", dbus.MakeVariant("inactive-or-failed")},
		{"CPUAccounting", dbus.MakeVariant(true)},
		{"MemoryAccounting", dbus.MakeVariant(true)},
	}
	g := &scope{s: s, known: true}
	changed, err := g.properties(l)
	if err != nil {
		return nil, err
	}
	properties = append(properties, changed...)
	for _, unit := range []string{basePrefix + name, basePrefix + name + "-" + id} {
		g.name = unit + scopeSuffix
		err = s.call(ctx, "StartTransientUnit", g.name, "fail", properties, []busAux{})
		if e := (dbus.Error{}); !errors.As(err, &e) || e.Name != managerName+".UnitExists" {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("systemd makes no scope %s: %w", g.name, err)
	}
	tick := time.NewTicker(scopeTick)
	defer tick.Stop()
	for scopeOf(pid) != g.name {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("systemd does not start the scope %s: %w", g.name, ctx.Err())
		}
	}
	g.limits = *l
	return g, nil
}

// scopeOf returns the scope of banger's that a process is in, empty for none.
func scopeOf(pid int) string {
	groups := groupsOf(pid)
	for _, hierarchy := range []string{"", "name=systemd"} {
		name := path.Base(groups[hierarchy])
		if strings.HasPrefix(name, basePrefix) && strings.HasSuffix(name, scopeSuffix) {
			return name
		}
	}
	return ""
}

// Find implements vmm.Groups.
func (s *systemd) Find(_ string, pid int) vmm.Group {
	name := scopeOf(pid)
	if name == "" {
		return nil
	}
	return &scope{s: s, name: name}
}

// Drop implements vmm.Groups. A scope ends with its last process.
func (s *systemd) Drop(string) {}

// Sweep implements vmm.Groups.
func (s *systemd) Sweep() {}

// Close implements vmm.Groups.
func (s *systemd) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.Close()
	}
}

// scope is the unit of a VM.
type scope struct {
	s      *systemd
	name   string
	limits vmm.Limits // in force
	known  bool       // limits are what is in force
}

// properties returns the properties of the limits that differ from those in force.
func (g *scope) properties(l *vmm.Limits) ([]busProperty, error) {
	var all []busProperty
	for i := range knobs {
		k := &knobs[i]
		if g.known && k.same(&g.limits, l) {
			continue
		}
		if !slices.Contains(g.s.controllers, controllers[k.feature]) {
			if k.same(&vmm.Limits{}, l) {
				continue
			}
			return nil, fmt.Errorf("%s: %w: the cgroup controller %s is not here",
				k.feature, vmm.ErrUnsupported, controllers[k.feature])
		}
		for _, p := range k.properties(l) {
			all = append(all, busProperty{p.name, dbus.MakeVariant(p.value)})
		}
	}
	return all, nil
}

// Limit implements vmm.Group. systemd takes all properties or none.
func (g *scope) Limit(ctx context.Context, l *vmm.Limits) error {
	changed, err := g.properties(l)
	if err != nil {
		return err
	}
	if len(changed) > 0 {
		const runtime = true // not for the next boot of the host
		err = g.s.call(ctx, "SetUnitProperties", g.name, runtime, changed)
		if err != nil {
			return fmt.Errorf("systemd does not limit %s: %w", g.name, err)
		}
	}
	g.limits, g.known = *l, true
	return nil
}

// Remove implements vmm.Group.
func (g *scope) Remove() {}
