package fake

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
)

// kept is the content of fake.json. A machine's age is Ran, plus the time since Since unless Paused.
type kept struct {
	ID     string        `json:"id"`
	Ran    time.Duration `json:"ran"`
	Since  time.Time     `json:"since"`
	Paused bool          `json:"paused"`
	Full   bool          `json:"full"`   // paused because a disk is full
	Filled bool          `json:"filled"` // a disk was full once
	Limits vmm.Limits    `json:"limits"` // nothing enforces them
	Target int64         `json:"target"` // bytes that the guest has, 0 for all of its memory

	// The guest's clock shows its age, which drifts as scripted, and these.
	Steps  time.Duration `json:"steps"`
	Slewed time.Duration `json:"slewed"`
}

func load(path string) (k kept, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return k, err
	}
	return k, json.Unmarshal(b, &k)
}

// machine implements vmm.Machine.
type machine struct {
	// Immutable.
	vmm.BaseMachine
	driver    *Driver
	name, dir string // not the whole spec, to save memory
	memory    int64
	script    script
	notify    func(vmm.Notice)
	done      chan struct{}

	console console

	files    sync.Once // makes the guest's files for the first stream
	filesErr error     // of files

	// saving orders the writes of fake.json; taken before mu.
	saving sync.Mutex

	// Guarded by mu.
	mu      sync.Mutex
	disk    int64
	kept    kept
	timer   *time.Timer
	resumed chan struct{} // closed while not paused
	streams map[string]guest.StreamHandler
	conns   map[net.Conn]struct{} // the host's ends of its streams
	exit    vmm.Exit
	over    bool // ended, or released by Close
}

func (d *Driver) machine(spec *vmm.Spec, s script, k kept, notify func(vmm.Notice)) *machine {
	m := &machine{
		BaseMachine: vmm.BaseMachine(d.BaseDriver), driver: d,
		name: spec.Name, dir: spec.Dir, memory: spec.Config.Memory, disk: spec.Config.Disk,
		script: s, kept: k, notify: notify,
		done: make(chan struct{}), resumed: make(chan struct{}),
	}
	if !k.Paused {
		close(m.resumed)
	}
	return m
}

func (m *machine) Process() vmm.Process  { return m.driver.process }
func (m *machine) Done() <-chan struct{} { return m.done }
func (m *machine) Guest() guest.Agent    { return agent{m} }
func (m *machine) Console() vmm.Console  { return terminal{m} }

func (m *machine) Exit() vmm.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

func (m *machine) path() string { return filepath.Join(m.dir, stateFile) }

// save writes the machine's state to fake.json for the next daemon.
func (m *machine) save() error {
	m.saving.Lock()
	defer m.saving.Unlock()
	m.mu.Lock()
	over, k := m.over, m.kept
	m.mu.Unlock()
	if over {
		return nil
	}
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if err := os.WriteFile(m.path()+vmm.NewSuffix, b, 0o600); err != nil {
		return err
	}
	return os.Rename(m.path()+vmm.NewSuffix, m.path())
}

// arm sets the timer of the script's next end; mu is held.
func (m *machine) arm() {
	e, ok := m.script.next(m.kept.Filled)
	if !ok || m.kept.Paused || m.over {
		return
	}
	left := max(0, e.after-m.age())
	m.timer = time.AfterFunc(left, func() {
		if e.full {
			m.fill()
			return
		}
		m.end(e)
	})
}

func (m *machine) age() time.Duration {
	if m.kept.Paused {
		return m.kept.Ran
	}
	return m.kept.Ran + time.Since(m.kept.Since)
}

// BlockStats implements vmm.Machine: the guest reads and writes a page each second.
func (m *machine) BlockStats(context.Context) (vmm.BlockStats, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := uint64(m.age() / time.Second)
	return vmm.BlockStats{ReadBytes: n * 4096, WriteBytes: n * 4096, ReadOps: n, WriteOps: n}, nil
}

// Metrics implements vmm.Machine.
func (m *machine) Metrics(context.Context) (json.RawMessage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	figures := map[string]any{"age_seconds": m.age().Seconds(), "paused": m.kept.Paused}
	return json.Marshal(map[string]any{"fake": figures})
}

// end ends the machine once; later calls do nothing.
func (m *machine) end(e end) {
	m.saving.Lock()
	m.mu.Lock()
	if m.over {
		m.mu.Unlock()
		m.saving.Unlock()
		return
	}
	m.over, m.exit = true, e.exit
	m.breakConnsLocked()
	if m.timer != nil {
		m.timer.Stop()
	}
	m.mu.Unlock()
	os.Remove(m.path())
	m.saving.Unlock()
	if e.panic {
		m.notify(vmm.Notice{Kind: vmm.NoticePanic, Detail: "the guest's kernel panicked"})
	}
	close(m.done)
	m.notify(vmm.Notice{Kind: vmm.NoticeExited, Detail: e.exit.Reason})
}

func (m *machine) Kill(ctx context.Context) error {
	m.end(end{exit: wasKilled})
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *machine) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
	m.breakConnsLocked()
	if m.timer != nil {
		m.timer.Stop()
	}
	return nil
}

// Forward implements vmm.Machine. Nothing listens: the guest has no network.
func (m *machine) Forward(context.Context, []vmm.Publication) error { return nil }

func (m *machine) Pause(context.Context) error  { return m.setPaused(true) }
func (m *machine) Resume(context.Context) error { return m.setPaused(false) }

// Paused implements vmm.Machine.
func (m *machine) Paused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kept.Paused
}

// Full implements vmm.Machine.
func (m *machine) Full() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kept.Full
}

// fill pauses the machine as a full host disk does.
func (m *machine) fill() {
	m.mu.Lock()
	if m.over || m.kept.Paused {
		m.mu.Unlock()
		return
	}
	m.kept.Filled = true
	m.stopLocked()
	m.kept.Full = true
	m.mu.Unlock()
	_ = m.save()
	m.notify(vmm.Notice{Kind: vmm.NoticeFull, Detail: "work"})
}

func (m *machine) stopLocked() {
	m.kept.Ran = m.age()
	m.kept.Paused = true
	m.resumed = make(chan struct{})
	if m.timer != nil {
		m.timer.Stop()
	}
}

func (m *machine) setPaused(paused bool) error {
	m.mu.Lock()
	m.kept.Full = false
	switch {
	case m.over:
		m.mu.Unlock()
		return vmm.ErrNotRunning
	case paused && !m.kept.Paused:
		m.stopLocked()
	case !paused && m.kept.Paused:
		m.kept.Paused, m.kept.Since = false, time.Now()
		close(m.resumed)
		m.arm()
	}
	m.mu.Unlock()
	return m.save()
}

// Limit implements vmm.Machine.
func (m *machine) Limit(_ context.Context, l *vmm.Limits) error {
	return m.keep(func(k *kept) { k.Limits = *l })
}

// Balloon implements vmm.Machine. The guest gives its memory up at once.
func (m *machine) Balloon(_ context.Context, bytes int64) error {
	return m.keep(func(k *kept) { k.Target = bytes })
}

// keep changes what the next daemon finds. Without a change it writes nothing.
func (m *machine) keep(change func(*kept)) error {
	m.mu.Lock()
	changed := m.kept
	change(&changed)
	switch {
	case m.over:
		m.mu.Unlock()
		return vmm.ErrNotRunning
	case changed == m.kept:
		m.mu.Unlock()
		return nil
	case m.script.failLimit:
		m.mu.Unlock()
		return errors.New("the fake machine fails as its cmdline tells it to")
	}
	m.kept = changed
	m.mu.Unlock()
	return m.save()
}

// awake waits until the CPUs run.
func (m *machine) awake(ctx context.Context) error {
	m.mu.Lock()
	resumed := m.resumed
	m.mu.Unlock()
	return m.wait(ctx, resumed)
}

// wait blocks until c is closed. It returns vmm.ErrNotRunning if the machine ends first, and
// vmm.ErrTimeout at ctx's deadline.
func (m *machine) wait(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-m.done:
		return vmm.ErrNotRunning
	default:
	}
	select {
	case <-c:
		return nil
	case <-m.done:
		return vmm.ErrNotRunning
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return vmm.ErrTimeout
		}
		return ctx.Err()
	}
}
