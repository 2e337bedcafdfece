package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// Options are what a Manager is made of. The Manager closes none of them but the Store.
type Options struct {
	StateDir string
	Store    Store
	Drivers  []Driver // the first is the default
	Network  Network
	Images   Images
	Log      *slog.Logger
	// DNS are the resolvers on the bridge that guests there are told of; none where nobody answers.
	DNS []netip.Addr
	// Defaults for new VMs; Memory 0 stands for the image's own.
	Defaults Config
	// VMUIDBase, when not 0, runs the VMM of serial N as uid and gid VMUIDBase+N.
	VMUIDBase int
	// Sweep is how often the idle_timeout sweep looks; 1 s if 0.
	Sweep time.Duration
}

// defaultMemory is for VMs made before their image, bytes.
const defaultMemory = 128 << 20

// adoptionsAtOnce bounds what Open asks side by side.
const adoptionsAtOnce = 32

// autostartsAtOnce bounds the boots that Open begins side by side.
const autostartsAtOnce = 4

// persistEvery bounds how old the durable time of the last use may be.
const persistEvery = time.Minute

// Manager owns all VMs of one state directory.
//
// Lock order: a VM's own channel, then VM.mu, then emitMu, then an eventLog's;
// mu is held alone, but that claims.mu may be taken under it.
type Manager struct {
	o       Options // immutable
	drivers map[string]Driver
	bootID  string
	vmsDir  string
	ctx     context.Context // ends when Close gives up waiting
	cancel  context.CancelFunc
	closing chan struct{}  // closed when Close begins
	imports chan struct{}  // bounds the imports under way
	work    sync.WaitGroup // every goroutine of the Manager

	mu       sync.RWMutex // guards the next five
	closed   bool
	byName   map[string]*VM
	taken    map[string]bool // names that are being given or given up: nobody else may have them
	bySerial map[uint64]*VM
	changed  time.Time
	sorted   atomic.Pointer[[]*VM] // nil when byName has changed since; stored under mu

	claims claims
	named  atomic.Bool // the host finds guests by their names

	counts [len(counted)]struct{ done, failed atomic.Uint64 }

	emitMu sync.Mutex // orders events
	seq    uint64
	seqF   *os.File
	events eventLog
}

// Open loads the records, adopts what still runs, marks what died, removes what belongs to no
// record, and begins the autostarts. It returns when every VM may be used.
func Open(ctx context.Context, o Options) (*Manager, error) {
	if o.Sweep == 0 {
		o.Sweep = time.Second
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("cannot tell this boot of the host from others: %w", err)
	}
	m := &Manager{
		o:        o,
		drivers:  make(map[string]Driver),
		bootID:   strings.TrimSpace(string(bootID)),
		vmsDir:   filepath.Join(o.StateDir, "vms"),
		closing:  make(chan struct{}),
		imports:  make(chan struct{}, importsAtOnce),
		byName:   make(map[string]*VM),
		taken:    make(map[string]bool),
		bySerial: make(map[uint64]*VM),
		changed:  time.Now(),
		claims:   claims{of: make(map[uint64][]Publication)},
	}
	for _, d := range o.Drivers {
		m.drivers[d.Name()] = d
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if err := os.MkdirAll(m.vmsDir, 0o711); err != nil {
		return nil, err
	}
	if err := m.openSeq(); err != nil {
		return nil, err
	}
	records, err := o.Store.Load(ctx)
	if err == nil {
		err = m.recover(ctx, records)
	}
	if err != nil {
		m.cancel()
		m.seqF.Close()
		return nil, err
	}
	for _, v := range m.VMs() {
		v.tidyUp()
	}
	m.spawn(m.sweep)
	m.autostart()
	return m, nil
}

// openSeq finds the number of the last event of the daemon before. It is kept
// in the page cache only: it outlives the daemon's death, which is when readers
// go on counting, and costs no sync for each event.
func (m *Manager) openSeq() error {
	f, err := os.OpenFile(filepath.Join(m.o.StateDir, "seq"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	var b [8]byte
	if n, _ := f.ReadAt(b[:], 0); n == len(b) {
		m.seq = binary.LittleEndian.Uint64(b[:])
	}
	m.seqF = f
	return nil
}

// recover makes VMs of the records: adopts, or says what became of them.
func (m *Manager) recover(ctx context.Context, records []Record) error {
	living := make(map[string]bool)
	ids := make(map[string]bool)
	for _, r := range records {
		ids[r.ID] = true
		living[r.ID] = r.State.Alive() || r.State == Starting
	}
	for _, d := range m.o.Drivers {
		if err := d.Sweep(ctx, m.o.StateDir, func(id string) bool { return living[id] }); err != nil {
			return fmt.Errorf("cannot end leftover machines: %w", err)
		}
	}
	entries, err := os.ReadDir(m.vmsDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !ids[e.Name()] {
			m.o.Log.Info("removing the directory of a VM that is gone", "id", e.Name())
			if err := os.RemoveAll(filepath.Join(m.vmsDir, e.Name())); err != nil {
				return err
			}
		}
	}
	for _, r := range records {
		m.claims.set(r.Serial, r.Config.Publications())
		m.insert(m.newVM(r))
	}
	saved, err := m.o.Store.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, d := range saved {
		if v := m.BySerial(d.Serial); v != nil {
			v.publish(func(s *Snapshot) { s.Saved = append(s.Saved, d) })
		}
	}
	if err := m.adopt(ctx); err != nil {
		return err
	}
	return m.o.Network.Settle()
}

// adopt recovers the VMs that were not stopped, side by side: a VMM that does not answer takes its deadline.
func (m *Manager) adopt(ctx context.Context) error {
	slots := make(chan struct{}, adoptionsAtOnce)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error // guarded by mu
	for _, v := range m.VMs() {
		if s := v.Snapshot().State; s == Stopped || s == Failed {
			continue
		}
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-slots }()
			if err := v.recover(ctx); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("cannot recover %s: %w", v.Snapshot().Name, err))
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (m *Manager) autostart() {
	slots := make(chan struct{}, autostartsAtOnce)
	for _, v := range m.VMs() {
		s := v.Snapshot()
		if !s.Config.Autostart || s.State != Stopped {
			continue
		}
		m.spawn(func() {
			select {
			case slots <- struct{}{}:
			case <-m.closing:
				return
			}
			defer func() { <-slots }()
			if err := v.Do(m.ctx, Start); err != nil {
				m.o.Log.Error("autostart failed", "vm", s.Name, "err", err)
			}
		})
	}
}

// spawn runs f in a goroutine that Close waits for; it reports false when the Manager is closing.
func (m *Manager) spawn(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.work.Add(1)
	go func() {
		defer m.work.Done()
		f()
	}()
	return true
}

// Close lets go of the running machines without ending them, waits for the transitions under way
// (until ctx ends) and for every goroutine of the Manager, and closes the store.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	close(m.closing)
	for _, v := range m.VMs() {
		if t := v.transition(); t != nil {
			select {
			case <-t.done:
			case <-ctx.Done():
			}
		}
	}
	m.cancel()
	m.work.Wait()
	var errs []error
	for _, v := range m.VMs() {
		v.saveTouched(ctx)
		if machine := v.Snapshot().Machine; machine != nil {
			errs = append(errs, machine.Close())
		}
		v.events.end()
	}
	m.events.end()
	errs = append(errs, m.seqF.Close(), m.o.Store.Close())
	return errors.Join(errs...)
}

// Create makes a VM with the default settings. ErrInvalid, ErrNameTooLong, ErrExists.
func (m *Manager) Create(ctx context.Context, name string, owner Owner) (*VM, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if !m.take(name) {
		return nil, fmt.Errorf("cannot create %s: %w", name, ErrExists)
	}
	defer m.release(name)
	now := time.Now()
	r := Record{
		ID:      uuid.NewString(),
		Name:    name,
		Config:  m.o.Defaults,
		Owner:   owner,
		Created: now,
		Touched: now,
		State:   Stopped,
	}
	if r.Config.Memory == 0 {
		r.Config.Memory = defaultMemory
		if image, err := m.o.Images.Image(r.Config.Image); err == nil {
			r.Config.Memory = image.Memory
		}
	}
	// A wait that was given up would leave a record that nobody knows of.
	if err := m.o.Store.Insert(context.WithoutCancel(ctx), &r); err != nil {
		return nil, fmt.Errorf("cannot create %s: %w", name, err)
	}
	v := m.newVM(r)
	v.own <- struct{}{} // nothing of it happens before its create is told
	defer func() { <-v.own }()
	m.insert(v)
	v.emit(EventCreate, "")
	return v, nil
}

// Remove destroys a VM and its disks. ErrNotFound, ErrBusy unless stopped or failed, ErrProtected.
func (m *Manager) Remove(ctx context.Context, name string) error {
	v := m.VM(name)
	if v == nil {
		return fmt.Errorf("cannot remove %s: %w", name, ErrNotFound)
	}
	if err := v.remove(ctx); err != nil {
		return fmt.Errorf("cannot remove %s: %w", name, err)
	}
	return nil
}

// Rename renames a VM. ErrNotFound, ErrBusy unless stopped or failed, ErrExists, ErrInvalid, ErrNameTooLong.
func (m *Manager) Rename(ctx context.Context, from, to string) error {
	if err := CheckName(to); err != nil {
		return err
	}
	v := m.VM(from)
	if v == nil {
		return fmt.Errorf("cannot rename %s: %w", from, ErrNotFound)
	}
	if !m.take(to) {
		return fmt.Errorf("cannot rename %s to %s: %w", from, to, ErrExists)
	}
	defer m.release(to)
	if err := v.rename(ctx, from, to); err != nil {
		return fmt.Errorf("cannot rename %s: %w", from, err)
	}
	return nil
}

// take keeps a name from others until release; false if a VM has it or somebody is about to give it.
func (m *Manager) take(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byName[name] != nil || m.taken[name] {
		return false
	}
	m.taken[name] = true
	return true
}

func (m *Manager) release(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.taken, name)
}

// renamed lists a VM by its new name; the old one stays taken until its caller releases it.
func (m *Manager) renamed(v *VM, from, to string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.byName, from)
	m.byName[to] = v
	m.taken[from] = true
	m.listChangedLocked()
}

func (m *Manager) insert(v *VM) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.byName[v.Snapshot().Name] = v
	m.bySerial[v.serial] = v
	m.listChangedLocked()
}

// forget takes a VM from the lists; its name stays taken until its caller releases it.
func (m *Manager) forget(v *VM) {
	name := v.Snapshot().Name
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.byName, name)
	m.taken[name] = true
	delete(m.bySerial, v.serial)
	m.claims.set(v.serial, nil)
	m.listChangedLocked()
}

func (m *Manager) listChangedLocked() {
	m.changed = time.Now()
	m.sorted.Store(nil)
}

// VM finds by name, nil if there is none; it does not block.
func (m *Manager) VM(name string) *VM {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.byName[name]
}

// BySerial finds by serial, nil if there is none; it does not block.
func (m *Manager) BySerial(serial uint64) *VM {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.bySerial[serial]
}

// VMs gives all VMs sorted by name; the slice is shared and immutable.
func (m *Manager) VMs() []*VM {
	if p := m.sorted.Load(); p != nil {
		return *p
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]*VM, 0, len(m.byName))
	names := make([]string, 0, len(m.byName))
	for name := range m.byName {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		list = append(list, m.byName[name])
	}
	m.sorted.Store(&list)
	return list
}

// ListChanged is when the set of names last changed.
func (m *Manager) ListChanged() time.Time {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.changed
}

// Events gives the events since the daemon started, at most the last EventHistory.
func (m *Manager) Events() []Event { return m.events.all() }

// Follow gives a reader of the events to come.
func (m *Manager) Follow() EventReader { return m.events.follow() }

// OnChange registers f to be called after each event was published, in order, from one goroutine
// of the Manager. When f was too slow for EventHistory events, missed is called in the place of those that it is not told of.
// Before Open's VMs are used.
func (m *Manager) OnChange(f func(Event), missed func()) {
	r := m.events.follow()
	m.spawn(func() {
		for {
			events, lost, err := r.Next(m.ctx)
			if err != nil {
				return
			}
			if lost > 0 {
				m.o.Log.Warn("watchers were not told of events", "lost", lost)
				missed()
			}
			for _, e := range events {
				f(e)
			}
		}
	})
}

// counted are the transitions that Transitions tells apart; exit is the end of a machine that nobody asked to end.
var counted = [...]Command{Start, Stop, Restart, Kill, Pause, Resume, exit, Take, Drop, Restore, Export}

// Transitions is how often a command's transition has ended since the daemon's start.
type Transitions struct {
	Command      Command
	Done, Failed uint64
}

// Transitions counts by command.
func (m *Manager) Transitions() []Transitions {
	all := make([]Transitions, len(counted))
	for i, c := range counted {
		all[i] = Transitions{c, m.counts[i].done.Load(), m.counts[i].failed.Load()}
	}
	return all
}

func (m *Manager) count(c Command, err error) {
	i := slices.Index(counted[:], c)
	if err == nil {
		m.counts[i].done.Add(1)
	} else {
		m.counts[i].failed.Add(1)
	}
}

// emit numbers an event and shows it to all who follow; v is nil for one of no VM.
func (m *Manager) emit(v *VM, name, what, detail string) {
	m.emitMu.Lock()
	defer m.emitMu.Unlock()
	m.seq++
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], m.seq)
	// 8 bytes into the page cache: no waiting for a disk, though under a lock.
	if _, err := m.seqF.WriteAt(b[:], 0); err != nil && !errors.Is(err, fs.ErrClosed) {
		m.o.Log.Error("cannot keep the number of the last event", "err", err)
	}
	e := Event{Time: time.Now(), Seq: m.seq, VM: name, What: what, Detail: detail}
	if v != nil {
		e.Serial = v.serial
		v.events.add(e)
	}
	m.events.add(e)
}

func (m *Manager) driverNames() []string {
	var names []string
	for _, d := range m.o.Drivers {
		names = append(names, d.Name())
	}
	return names
}

// sweep stops what nobody has used for its idle_timeout, lets what found no space go on, and keeps the times of use durable.
func (m *Manager) sweep() {
	tick := time.NewTicker(m.o.Sweep)
	defer tick.Stop()
	persisted := time.Now()
	for n := 1; ; n++ {
		select {
		case <-m.closing:
			return
		case <-tick.C:
		}
		persist := time.Since(persisted) >= persistEvery
		if persist {
			persisted = time.Now()
		}
		for _, v := range m.VMs() {
			s := v.Snapshot()
			if n%fullLook == 0 {
				v.goOn(s)
			}
			if v.idle(s) {
				v.logf("stopping it: not used for %v", s.Config.IdleTimeout)
				if err := v.Accept(m.ctx, Stop); err != nil && !errors.Is(err, ErrBusy) {
					m.o.Log.Error("cannot stop an idle VM", "vm", s.Name, "err", err)
				}
			}
			if persist {
				v.saveTouched(m.ctx)
				v.trimLog(s)
			}
		}
	}
}
