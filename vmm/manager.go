package vmm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"banger/internal/host"
)

// Options are what a Manager works with. Of these it closes the Store only.
type Options struct {
	StateDir string
	Store    Store
	Drivers  []Driver // the first is the default
	Network  Network
	Images   Images
	Log      *slog.Logger
	// DNS are the resolvers on the bridge that its guests receive, if any.
	DNS []netip.Addr
	// Defaults are the settings of new VMs. Memory 0 stands for the image's own.
	Defaults Config
	// Quotas are the limits of uids without a rule of their own; nil for no limits. UID is the
	// daemon's own. It and root have no limits unless they have a rule.
	Quotas *Amounts
	UID    uint32
	// User returns the user whose quota a uid's VMs count for; nil for the uid itself.
	User func(uid uint32) uint32
	// HostMemory is how many bytes of the host's memory all running VMs together may use; 0 for no
	// limit.
	HostMemory int64
	// VMUIDBase, when not 0, is the base of VMs' users: the VMM of serial N has uid and gid
	// VMUIDBase+N.
	VMUIDBase int
	// Sweep is the interval of sweeps for idle VMs; 0 stands for 1 s.
	Sweep time.Duration
	// Acted is called after the daemon has changed a VM by itself, with no lock held. nil calls
	// nothing.
	Acted func(*VM, Act, error)
}

// autostartsAtOnce bounds the autostarts that run side by side.
const autostartsAtOnce = 4

// Manager owns all VMs of one state directory.
//
// Lock order: a VM's turn, then VM.mu, then emitMu, then an eventLog's mu. Nothing but claims.mu is
// locked under Manager.mu. Nothing is locked under the ledger's mu.
type Manager struct {
	o       Options // immutable
	drivers map[string]Driver
	bootID  string
	vmsDir  string
	ctx     context.Context // ends when Close stops waiting
	cancel  context.CancelFunc
	opened  chan struct{}  // closed when Open has recovered all VMs
	closing chan struct{}  // closed when Close begins
	work    sync.WaitGroup // every goroutine of the Manager but discards

	discards   sync.WaitGroup
	discarding sync.Mutex // held over the deletion of one directory, above all other locks

	mu       sync.RWMutex // guards the fields up to changed, and stores of sorted
	closed   bool
	byName   map[string]*VM
	reserved map[string]bool // names that a caller is about to give to a VM, or to free
	bySerial map[uint64]*VM
	changed  time.Time
	sorted   atomic.Pointer[[]*VM] // nil after a change of byName

	claims    claims
	ledger    *ledger
	ruling    chan struct{} // full while a rule of the ledger changes
	named     atomic.Bool   // the host finds guests by their names
	byAddress sync.Map      // running VMs: netip.Addr to *VM

	counts [len(counted)]struct{ done, failed atomic.Uint64 }

	clocks atomic.Bool // a round over guests' clocks is under way

	emitMu sync.Mutex // orders events
	seq    uint64
	seqF   *os.File
	events eventLog
}

// Open loads the records, adopts the machines that run, records those that died, deletes
// directories without a record, and begins the autostarts. It returns when every VM can be used.
func Open(ctx context.Context, o Options) (*Manager, error) {
	if o.Sweep == 0 {
		o.Sweep = time.Second
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("cannot read the id of this boot of the host: %w", err)
	}
	m := &Manager{
		o:        o,
		drivers:  make(map[string]Driver),
		bootID:   strings.TrimSpace(string(bootID)),
		vmsDir:   filepath.Join(o.StateDir, "vms"),
		opened:   make(chan struct{}),
		closing:  make(chan struct{}),
		byName:   make(map[string]*VM),
		reserved: make(map[string]bool),
		bySerial: make(map[uint64]*VM),
		changed:  time.Now(),
		claims:   claims{of: make(map[uint64][]Publication)},
		ledger:   newLedger(&o),
		ruling:   make(chan struct{}, 1),
	}
	for _, d := range o.Drivers {
		m.drivers[d.Capabilities().Name] = d
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if err := errors.Join(host.MakeDirs(m.vmsDir, 0o700), os.Chmod(m.vmsDir, 0o700)); err != nil {
		return nil, err
	}
	if err := m.openSeq(); err != nil {
		return nil, err
	}
	records, err := o.Store.Load(ctx)
	if err == nil {
		err = m.loadQuotas(ctx)
	}
	if err == nil {
		err = m.recover(ctx, records)
	}
	if err != nil {
		m.cancel()
		within(workWait, &m.work)
		within(discardWait, &m.discards)
		m.seqF.Close()
		return nil, err
	}
	close(m.opened)
	for _, v := range m.VMs() {
		v.tidyUp()
	}
	m.spawn(m.sweep)
	m.autostart()
	m.awaitHolders()
	return m, nil
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
			err := v.Do(m.ctx, Start)
			if err != nil {
				m.o.Log.Error("autostart failed", "vm", s.Name, "err", err)
				v.Fail(err)
			}
			v.acted(ActAutostart, err)
		})
	}
}

// spawn runs f in a goroutine that Close waits for. It reports false when the Manager is closing.
func (m *Manager) spawn(f func()) bool { return m.spawnIn(&m.work, f) }

func (m *Manager) spawnIn(all *sync.WaitGroup, f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	all.Go(f)
	return true
}

// Close waits for the transitions under way until ctx ends, and then for every goroutine of the
// Manager. It disconnects from the running machines, which go on, and closes the store. Directories
// of removed VMs that are not yet deleted are left to the next Open: that loses nothing and is no
// error.
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
	var errs []error
	if !within(workWait, &m.work) {
		errs = append(errs, fmt.Errorf("some work on VMs has not ended within %v", workWait))
	}
	if !within(discardWait, &m.discards) {
		m.o.Log.Warn("the next start deletes the rest of removed VMs' disks")
	}
	for _, v := range m.VMs() {
		v.publishUse()
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

// workWait bounds the wait for goroutines whose context has ended: one may hang in the kernel, on a
// disk for example. Tests change it.
var workWait = 5 * time.Second

// discardWait bounds the wait for the step that a deletion is in.
const discardWait = time.Second

// within reports whether all goroutines of a group ended within that time.
func within(limit time.Duration, all *sync.WaitGroup) bool {
	ended := make(chan struct{})
	go func() { // ends with the last of them, or the process
		all.Wait()
		close(ended)
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-ended:
		return true
	case <-timer.C:
		return false
	}
}

// VM returns the VM of that name, or nil. It does not block.
func (m *Manager) VM(name string) *VM {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.byName[name]
}

// BySerial returns the VM of that serial, or nil. It does not block.
func (m *Manager) BySerial(serial uint64) *VM {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.bySerial[serial]
}

// VMs returns all VMs, sorted by name. The slice is shared: nobody changes it.
func (m *Manager) VMs() []*VM {
	if p := m.sorted.Load(); p != nil {
		return *p
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]*VM, 0, len(m.byName))
	for _, name := range slices.Sorted(maps.Keys(m.byName)) {
		list = append(list, m.byName[name])
	}
	m.sorted.Store(&list)
	return list
}

// ListChanged returns when the set of names last changed. It does not block.
func (m *Manager) ListChanged() time.Time {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.changed
}

// Drivers returns what each driver can do; the first is the default. It does not block.
func (m *Manager) Drivers() []Capabilities {
	var all []Capabilities
	for _, d := range m.o.Drivers {
		all = append(all, d.Capabilities())
	}
	return all
}

// driver returns the driver of that name. Without one, it returns a driver that refuses everything.
func (m *Manager) driver(name string) Driver {
	if d := m.drivers[name]; d != nil {
		return d
	}
	return BaseDriver{Capabilities{Name: name, Unusable: fmt.Sprintf("vmm %q is not here", name)}}
}

func (m *Manager) driverNames() []string {
	var names []string
	for _, d := range m.o.Drivers {
		names = append(names, d.Capabilities().Name)
	}
	return names
}
