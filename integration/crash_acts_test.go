package integration

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// life is what was acknowledged of one VM, and the command under way.
type life struct {
	*campaign
	index int
	disk  bool // it gets a disk, so that snapshots of it can be taken

	name, state, next string // "" for a state: there is no VM
	values            *values
	snapshots         map[string]bool
	snapshot          string // that is being made or removed
	taken             int
}

// act is a kind of command to a VM.
type act struct {
	name   string
	weight int
	when   func(*life) bool
	do     func(*life, *rand.Rand) error
	done   *atomic.Int64
}

// all returns the acts that crash tests know. A new file of a VM is a row.
func allActs() []act {
	acts := []act{
		{"mkdir", 6, absent, (*life).create, nil},
		{"import", 4, (*life).canImport, (*life).load, nil},
		{"start", 8, down, doing("start", "running"), nil},
		{"stop", 4, running, doing("stop", "stopped"), nil},
		{"kill", 4, running, doing("kill", "stopped"), nil},
		{"reboot", 2, running, (*life).reboot, nil},
		{"rmdir", 4, down, (*life).remove, nil},
		{"rename", 4, down, (*life).rename, nil},
		{"export", 2, down, (*life).export, nil},
		{"snapshot", 3, hasDisk, (*life).take, nil},
		{"rmdir snapshot", 2, hasSnapshot, (*life).drop, nil},
		{"restore", 2, canRestore, (*life).restore, nil},
		{"chown", 2, isRoot, (*life).chown, nil},
		{"publish", 4, exists, (*life).publish, nil},
	}
	for _, s := range []struct {
		file  string
		texts []string // as the file shows them
	}{
		{"idle_timeout", []string{"7200", "86400", "max"}},
		{"isolate", []string{"0", "1"}},
		{"authorized_keys", []string{"", testKey}},
		{"limits/cpu.weight", []string{"50", "100", "200"}},
		{"limits/cpu.max", []string{"max 100000", "50000 100000"}},
		{"limits/memory.max", []string{"max", "1073741824"}},
		{"limits/pids.max", []string{"max", "500"}},
		{"limits/io.max", []string{"rbps=max wbps=max riops=max wiops=max",
			"rbps=max wbps=1048576 riops=max wiops=500"}},
		{"limits/net.max", []string{"rx=max tx=max", "rx=1048576 tx=max"}},
		{"memory_target", []string{"max", "67108864"}},
	} {
		acts = append(acts, act{s.file, 1, exists,
			func(l *life, r *rand.Rand) error {
				return l.set(s.file, s.texts[r.IntN(len(s.texts))])
			}, nil})
	}
	for i := range acts {
		acts[i].done = new(atomic.Int64)
	}
	return acts
}

const testKey = "ssh-ed25519 " +
	"AAAAC3NzaC1lZDI1NTE5AAAAIBhOD1/UXx0W3kF8qCrqREVarI1RSLVjnTEWo6nH+ORN crash"

func absent(l *life) bool      { return l.state == "" }
func exists(l *life) bool      { return l.state != "" }
func running(l *life) bool     { return l.state == "running" }
func down(l *life) bool        { return l.state == "stopped" || l.state == "failed" }
func hasDisk(l *life) bool     { return exists(l) && l.disk }
func hasSnapshot(l *life) bool { return exists(l) && len(l.snapshots) > 0 }
func canRestore(l *life) bool  { return down(l) && len(l.snapshots) > 0 }
func isRoot(l *life) bool      { return exists(l) && os.Geteuid() == 0 }

// step does one random command and notes its result. An error leaves next set.
func (l *life) step(r *rand.Rand) error {
	sum := 0
	for _, a := range l.acts {
		if a.when(l) {
			sum += a.weight
		}
	}
	n := r.IntN(sum)
	for _, a := range l.acts {
		if !a.when(l) {
			continue
		}
		if n -= a.weight; n < 0 {
			if err := l.patiently(func() error { return a.do(l, r) }); err != nil {
				return fmt.Errorf("%s of %s, which is %s: %w", a.name, l.name, l.state, err)
			}
			a.done.Add(1)
			return nil
		}
	}
	return nil
}

// patiently repeats a command that is refused because the daemon tidies up after a crash.
func (l *life) patiently(do func() error) error {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := do()
		if !errors.Is(err, syscall.EBUSY) || l.killed.Load() || time.Now().After(end) {
			return err
		}
	}
}

// to notes a state that a command leads to.
func (l *life) to(state string, do func() error) error {
	l.next = state
	err := do()
	if err == nil {
		l.state = state
	}
	return err
}

func doing(word, state string) func(*life, *rand.Rand) error {
	return func(l *life, _ *rand.Rand) error {
		return l.to(state, func() error { return write(l.d.path(l.name, "state"), word) })
	}
}

// reboot lets the guest reboot. A VM whose daemon dies before it has seen the guest's end fails.
func (l *life) reboot(*rand.Rand) error {
	before := readFile(l.d.path(l.name, "started"))
	l.next = "running again"
	if err := write(l.d.path(l.name, "console"), "reboot"); err != nil {
		return err
	}
	for ; ; time.Sleep(time.Millisecond) {
		started, err := read(l.d.path(l.name, "started"))
		if err != nil {
			return err
		}
		if started+"\n" != before {
			l.next = "running"
			return nil
		}
	}
}

func (l *life) create(*rand.Rand) error {
	err := l.to("stopped", func() error { return os.Mkdir(l.d.path(l.name), 0o755) })
	if err != nil {
		return err
	}
	return l.configure()
}

// configure gives a new VM what it is to have in any case.
func (l *life) configure() error {
	text := "vmm " + l.vmm
	if l.disk {
		text += "\ndisk 16M"
	}
	return write(l.d.path(l.name, "config"), text)
}

func (l *life) remove(*rand.Rand) error {
	err := l.to("", func() error { return os.Remove(l.d.path(l.name)) })
	if err == nil {
		l.forget()
	}
	return err
}

// forget forgets what was acknowledged of a VM that is gone.
func (l *life) forget() {
	l.values, l.snapshots, l.snapshot = newValues(), map[string]bool{}, ""
}

// rename has the new name acknowledged, or the old one stays; which is seen afterwards.
func (l *life) rename(*rand.Rand) error {
	other := fmt.Sprintf("%c%d", 'a'+'b'-l.name[0], l.index)
	return l.to(l.state, func() error {
		err := os.Rename(l.d.path(l.name), l.d.path(other))
		if err == nil {
			l.name = other
		}
		return err
	})
}

func (l *life) take(*rand.Rand) error {
	l.taken++
	l.snapshot = fmt.Sprintf("s%d", l.taken)
	err := os.Mkdir(l.d.path(l.name, "snapshots", l.snapshot), 0o755)
	if err == nil {
		l.snapshots[l.snapshot] = true
		l.snapshot = ""
	}
	return err
}

func (l *life) drop(*rand.Rand) error {
	for l.snapshot = range l.snapshots { // any
		break
	}
	err := os.Remove(l.d.path(l.name, "snapshots", l.snapshot))
	if err == nil {
		delete(l.snapshots, l.snapshot)
		l.snapshot = ""
	}
	return err
}

func (l *life) restore(*rand.Rand) error {
	for name := range l.snapshots {
		return write(l.d.path(l.name, "restore"), name)
	}
	return nil
}

func (l *life) archive() *atomic.Pointer[string] {
	if l.disk {
		return &l.archives[1]
	}
	return &l.archives[0]
}

// export keeps the whole archive for imports.
func (l *life) export(*rand.Rand) error {
	from, err := os.Open(l.d.path(l.name, "wait", "export"))
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.CreateTemp(l.dir, "archive")
	if err != nil {
		return err
	}
	defer to.Close()
	path := to.Name()
	if _, err := io.Copy(to, from); err != nil {
		return err
	}
	if old := l.archive().Swap(&path); old != nil {
		_ = os.Remove(*old) // an import has it open
	}
	return nil
}

func (l *life) canImport() bool { return l.state == "" && l.archive().Load() != nil }

func (l *life) load(*rand.Rand) error {
	archive, err := os.Open(*l.archive().Load())
	if err != nil {
		return nil // replaced just now
	}
	defer archive.Close()
	return l.to("stopped", func() error {
		f, err := os.OpenFile(filepath.Join(l.d.mount, "wait", "import"), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.WriteString(f, l.name+"\n"); err != nil {
			return err
		}
		_, err = io.Copy(struct{ io.Writer }{f}, archive) // in writes of 32 KiB
		return err
	})
}

// owners is the value of a VM's owner. Its uid has quotas.
const owners, quotaUID = "owner", "40777"

func (l *life) chown(r *rand.Rand) error {
	uid, gid := []int{0, 40777, 40778}[r.IntN(3)], 40777+r.IntN(2)
	return l.values.set(owners, fmt.Sprintf("%d:%d", uid, gid), func() error {
		return os.Chown(l.d.path(l.name), uid, gid)
	})
}

func (l *life) publish(r *rand.Rand) error {
	text := ""
	if r.IntN(2) == 0 {
		text = fmt.Sprintf("127.0.0.1:%d:80/tcp", l.port+l.index)
	}
	return l.set("publish", text)
}

func (l *life) set(file, text string) error {
	return l.values.set(file, text, func() error { return write(l.d.path(l.name, file), text) })
}

// read returns a value as it is after a crash.
func (l *life) read(file string) (string, error) {
	if file != owners {
		return read(l.d.path(l.name, file))
	}
	var st syscall.Stat_t
	err := syscall.Stat(l.d.path(l.name), &st)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid), err
}

// setQuota writes a limit above what this campaign uses.
func (k *campaign) setQuota(r *rand.Rand) error {
	file := []string{"vms", "cpus"}[r.IntN(2)]
	text := fmt.Sprint(20 + r.IntN(20))
	return k.quotas.set(file, text, func() error {
		return write(filepath.Join(k.d.mount, "quota", quotaUID, file), text)
	})
}

// readQuota returns the limit of a line `USED LIMIT`, and compares what is used.
func (k *campaign) readQuota(file string) (string, error) {
	text, err := read(filepath.Join(k.d.mount, "quota", quotaUID, file))
	if err != nil {
		return "", err
	}
	used, limit, ok := strings.Cut(text, " ")
	if !ok {
		return "", fmt.Errorf("quota/%s/%s is %q", quotaUID, file, text)
	}
	owned := 0
	for _, l := range k.lives {
		if owner, err := l.read(owners); err == nil && strings.HasPrefix(owner, quotaUID+":") {
			owned++
		}
	}
	if file == "vms" && used != fmt.Sprint(owned) {
		return "", fmt.Errorf("quota/%s/vms is %q, and it has %d VMs", quotaUID, text, owned)
	}
	return limit, nil
}

// settle finds the VM among the names that are there, and removes its name from them.
func (l *life) settle(there map[string]bool) {
	l.t.Helper()
	found := ""
	for _, name := range []string{fmt.Sprintf("a%d", l.index), fmt.Sprintf("b%d", l.index)} {
		if !there[name] {
			continue
		}
		if found != "" {
			l.t.Errorf("round %d: a renamed VM has both names: %s and %s", l.round, found, name)
		}
		found = name
		delete(there, name)
	}
	state := ""
	if found != "" {
		var err error
		l.name = found
		if state, err = l.d.stateAtRest(found); err != nil {
			l.t.Errorf("round %d: %v", l.round, err)
		}
	}
	// An interrupted start or stop may have failed or ended. An acknowledged state stays.
	cut := l.next != "" && l.next != l.state && (state == "failed" || state == "stopped")
	if state != l.state && state != l.next && !cut {
		l.t.Errorf("round %d: %s is %q, acknowledged was %q, under way %q",
			l.round, l.name, state, l.state, l.next)
	}
	l.state, l.next = state, state
	if state == "" {
		l.forget()
	} else {
		l.values.settle(l.campaign, l.name, l.read)
		l.settleSnapshots()
	}
	l.settlePort()
	if state == "stopped" { // the daemon may have been killed before the config of a new VM
		if err := l.patiently(l.configure); err != nil {
			l.t.Errorf("round %d: %v", l.round, err)
		}
	}
}

// settlePort finds out whether the VM's port is in force.
func (l *life) settlePort() {
	address := fmt.Sprintf("127.0.0.1:%d", l.port+l.index)
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err == nil {
		c.Close()
	}
	published := l.state != "" && readFile(l.d.path(l.name, "publish")) != ""
	if want := l.vmm == "qemu" && l.state == "running" && published; (err == nil) != want {
		l.t.Errorf("round %d: %s, %s, publishes its port: %v, and that returns: %v",
			l.round, l.name, l.state, published, err)
	}
}

// settleSnapshots compares the listed snapshots with the acknowledged ones.
func (l *life) settleSnapshots() {
	entries, err := os.ReadDir(l.d.path(l.name, "snapshots"))
	if err != nil {
		l.t.Errorf("round %d: %v", l.round, err)
	}
	listed := map[string]bool{}
	for _, e := range entries {
		listed[e.Name()] = true
		if !l.snapshots[e.Name()] && e.Name() != l.snapshot {
			l.t.Errorf("round %d: the snapshot %s of %s was never acknowledged",
				l.round, e.Name(), l.name)
		}
	}
	for name := range l.snapshots {
		if !listed[name] && name != l.snapshot {
			l.t.Errorf("round %d: the snapshot %s of %s is lost", l.round, name, l.name)
		}
	}
	l.snapshots, l.snapshot = listed, ""
}

// stateAtRest returns a VM's state after the end of a stop or a reboot that was under way. The next
// daemon goes on with it. It waits for at most 30 s and then returns `stopping` or `starting`.
func (d *daemon) stateAtRest(name string) (string, error) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		state, err := read(d.path(name, "state"))
		moving := state == "stopping" || state == "starting"
		if err != nil || !moving || time.Now().After(deadline) {
			return state, err
		}
	}
}

// values are texts that were written and acknowledged, by the file.
type values struct{ of map[string]*value }

// value is one of these; the command under way may change it from acked to next.
type value struct{ acked, next string }

func newValues() *values { return &values{map[string]*value{}} }

// set notes the result of a write. What this host or VMM cannot do changes nothing.
func (v *values) set(file, text string, do func() error) error {
	x := v.of[file] // nil before the first acknowledged write: any value is right
	if x != nil {
		x.next = text
	}
	err := do()
	switch {
	case err == nil:
		v.of[file] = &value{text, text}
	case errors.Is(err, syscall.EOPNOTSUPP):
		if x != nil {
			x.next = x.acked
		}
		return nil
	}
	return err
}

// settle compares all values, and notes what they are.
func (v *values) settle(k *campaign, name string, read func(file string) (string, error)) {
	k.t.Helper()
	for file, x := range v.of {
		is, err := read(file)
		if err != nil || is != x.acked && is != x.next {
			k.t.Errorf("round %d: %s of %s is %q (%v), acknowledged was %q, under way %q",
				k.round, file, name, is, err, x.acked, x.next)
		}
		x.acked, x.next = is, is
	}
}
