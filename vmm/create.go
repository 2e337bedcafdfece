package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"banger/internal/host"
)

// Create makes a VM with the default settings. ErrInvalid, ErrNameTooLong, ErrExists, ErrQuota.
func (m *Manager) Create(ctx context.Context, name string, owner Owner) (*VM, error) {
	return m.create(ctx, name, owner, false)
}

func (m *Manager) create(ctx context.Context, name string, owner Owner, held bool) (*VM, error) {
	if err := CheckVMName(name); err != nil {
		return nil, err
	}
	if !m.reserve(name) {
		return nil, fmt.Errorf("cannot create %s: %w", name, ErrExists)
	}
	defer m.release(name)
	c := m.o.Defaults
	image := m.footprint(c.Image)
	c.Memory = c.GuestMemory(image.memory)
	r := newRecord(name, owner, c)
	r.Held = held
	claimed, err := m.claim(r, image)
	var v *VM
	if err == nil {
		v, err = m.add(ctx, r, claimed, "")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot create %s: %w", name, err)
	}
	return v, nil
}

// claim counts what a VM counts for that is about to be made.
func (m *Manager) claim(r *Record, image footprint) (claim, error) {
	b := m.bill(r, image)
	h, err := m.ledger.claim(&charge{}, b)
	return claim{b, image, h}, err
}

func newRecord(name string, owner Owner, c Config) *Record {
	now := time.Now()
	return &Record{ID: uuid.NewString(), Name: name, Config: c, Owner: owner,
		Created: now, Touched: now, State: Stopped}
}

// add records a new VM and lists it. The caller has reserved its name. add ends the claim. detail
// is that of the event.
func (m *Manager) add(ctx context.Context, r *Record, c claim, detail string) (*VM, error) {
	// The record is written even if the caller waits no longer: it must not be one without a VM.
	if err := m.o.Store.Insert(context.WithoutCancel(ctx), r); err != nil {
		m.ledger.drop(c.hold)
		return nil, err
	}
	v := m.newVM(*r)
	v.holder = r.Held
	v.account(c)
	t, _ := v.tryAcquire() // nobody else knows the VM; nothing happens before its create event
	defer t.release()
	m.insert(v)
	v.emit(EventCreate, detail)
	return v, nil
}

// Rename renames a VM. It does not wait for a transition of the VM. ErrNotFound, ErrBusy unless
// stopped or failed and idle, ErrExists, ErrInvalid, ErrNameTooLong.
func (m *Manager) Rename(ctx context.Context, from, to string, may Permit) error {
	if err := CheckVMName(to); err != nil {
		return err
	}
	v := m.VM(from)
	if v == nil {
		return fmt.Errorf("cannot rename %s: %w", from, ErrNotFound)
	}
	if !m.reserve(to) {
		return fmt.Errorf("cannot rename %s to %s: %w", from, to, ErrExists)
	}
	defer m.release(to)
	if err := v.rename(ctx, from, to, may); err != nil {
		return fmt.Errorf("cannot rename %s: %w", from, err)
	}
	return nil
}

// rename renames the VM. The caller has reserved the name.
func (v *VM) rename(ctx context.Context, from, to string, may Permit) error {
	t, err := v.acquireDown(ctx, func(s *Snapshot) error { return s.named(from, may) })
	if err != nil {
		return err
	}
	defer t.release()
	d := t.draft()
	d.Name = to
	if err := t.commit(ctx, d); err != nil {
		return err
	}
	v.m.renamed(v, from, to)
	v.emit(EventRename, from)
	v.m.release(from)
	return nil
}

// named refuses a change of the VM that names it, if it has another name now or may does not permit
// the change.
func (s *Snapshot) named(name string, may Permit) error {
	if s.Name != name {
		return ErrNotFound
	}
	return may.ask(s.Owner)
}

// Remove destroys a VM and its disks. It does not wait for a transition of the VM. ErrNotFound,
// ErrBusy unless stopped or failed and idle, ErrProtected.
func (m *Manager) Remove(ctx context.Context, name string, may Permit) error {
	v := m.VM(name)
	if v == nil {
		return fmt.Errorf("cannot remove %s: %w", name, ErrNotFound)
	}
	if err := v.remove(ctx, name, may); err != nil {
		return fmt.Errorf("cannot remove %s: %w", name, err)
	}
	return nil
}

// remove destroys the VM. Its record goes first, durably: after a crash Open deletes a directory
// without a record.
func (v *VM) remove(ctx context.Context, name string, may Permit) error {
	t, err := v.acquireDown(ctx, func(s *Snapshot) error {
		if err := s.named(name, may); err != nil {
			return err
		}
		if s.Config.Protected {
			return fmt.Errorf("write 0 to its file protected first: %w", ErrProtected)
		}
		v.removed = true // no command can begin any more
		return nil
	})
	if err != nil {
		return err
	}
	defer t.release()
	if err := v.m.o.Store.Delete(context.WithoutCancel(ctx), v.serial); err != nil {
		v.mu.Lock()
		v.removed = false
		v.mu.Unlock()
		return err
	}
	v.m.discard(v.Snapshot().Dir)
	v.m.forget(v)
	v.m.ledger.forget(&v.charge)
	v.publish(func(*Snapshot) {}) // wakes all waiters for a change
	v.emit(EventRemove, "")
	v.events.end()
	v.m.release(name)
	return nil
}

// removeAll is host.RemoveAll. Tests change it.
var removeAll = host.RemoveAll

// discard deletes the directory of a VM without a record, in the background and one at a time: the
// kernel takes long for large disks, and the caller holds up all users of `vms`, or the daemon's
// start. The directory has a name that no VM's has, so that the next start of the daemon deletes
// what is left.
func (m *Manager) discard(dir string) {
	gone, err := dir, error(nil)
	if name := filepath.Base(dir); !strings.HasPrefix(name, ".") {
		gone = filepath.Join(m.vmsDir, "."+name)
		err = os.Rename(dir, gone)
	}
	if errors.Is(err, os.ErrNotExist) {
		return // the VM never started
	}
	remove := removeAll // a test changes it while another Manager's deletion still hangs
	m.spawnIn(&m.discards, func() {
		m.discarding.Lock()
		defer m.discarding.Unlock()
		if err == nil {
			err = remove(m.ctx, gone)
		}
		if err != nil && m.ctx.Err() == nil {
			m.o.Log.Error("cannot delete the directory of a removed VM", "dir", dir, "err", err)
		}
	})
}

// reserve keeps a name from others until release. It reports false if a VM has the name, or another
// caller has reserved it.
func (m *Manager) reserve(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byName[name] != nil || m.reserved[name] {
		return false
	}
	m.reserved[name] = true
	return true
}

func (m *Manager) release(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.reserved, name)
}

func (m *Manager) insert(v *VM) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.byName[v.Snapshot().Name] = v
	m.bySerial[v.serial] = v
	m.listChangedLocked()
}

// renamed lists a VM by its new name. The caller releases the old one.
func (m *Manager) renamed(v *VM, from, to string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.byName, from)
	m.byName[to] = v
	m.reserved[from] = true
	m.listChangedLocked()
}

// forget removes a VM from the lists. The caller releases its name.
func (m *Manager) forget(v *VM) {
	name := v.Snapshot().Name
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.byName, name)
	m.reserved[name] = true
	delete(m.bySerial, v.serial)
	m.claims.set(v.serial, nil)
	m.listChangedLocked()
}

func (m *Manager) listChangedLocked() {
	m.changed = time.Now()
	m.sorted.Store(nil)
}

// Archives export VMs as files and import such files. Implemented by vmm/archive.
type Archives interface {
	// Export returns an archive of a VM. It blocks until the disks are copied, for which the host
	// needs as much room as the archive has. The work ends with ctx. ErrBusy unless the VM is
	// stopped or failed.
	Export(ctx context.Context, v *VM) (Archive, error)
	// Import makes a VM of an archive of anybody. It uses its settings and disks only, and checks
	// all of them before there is a VM. It reads r to the archive's end and not beyond. An empty
	// name stands for the one in the archive. After an error or a crash nothing is left.
	// ErrInvalid for what is no archive, ErrNotFound if there is no such image, ErrExists, ErrBusy
	// if too many imports are under way.
	Import(ctx context.Context, name string, owner Owner, r io.Reader) (*VM, error)
}

// Archive is the content of an exported VM. Later changes of the VM do not change it. The caller
// closes it.
type Archive interface {
	io.ReaderAt
	io.Closer
}

// ExportDisks calls read with the disks of a VM, as a transition of the VM. It makes the disks that
// no start has made. The work ends with ctx. ErrBusy unless the VM is stopped or failed.
func (v *VM) ExportDisks(ctx context.Context,
	read func(context.Context, *Spec, Driver) error) error {
	doing := "cannot export " + v.Snapshot().Name
	return v.during(context.WithoutCancel(ctx), Export, doing, func(work context.Context) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		work, cancel := context.WithCancel(work)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		if err := v.Snapshot().checkDown(); err != nil {
			return err
		}
		if err := v.tidy(work); err != nil {
			return err
		}
		spec, driver, err := v.diskSpec()
		if err == nil && len(spec.Disks) > 0 {
			err = v.makeDisks(work, spec, driver)
		}
		if err == nil {
			err = read(work, spec, driver)
		}
		if err == nil {
			v.logf("exported")
		}
		return err
	})
}

// CreateWithDisks makes a VM of the defaults, as settings changes them, and of the disks that fill
// puts in place. The name is reserved and the owner's quota used meanwhile. After an error or a
// crash nothing is left. ErrInvalid, ErrNameTooLong, ErrExists, ErrQuota, ErrNoMemory.
func (m *Manager) CreateWithDisks(ctx context.Context, name string, owner Owner, image *Image,
	settings func(*Config) error, fill func(*Spec, Driver) error) (*VM, error) {
	c := m.o.Defaults
	if err := settings(&c); err != nil {
		return nil, err
	}
	none := Config{Net: c.Net}
	if err := m.checkConfig(&none, &c); err != nil {
		return nil, err
	}
	if err := m.ledger.alone(owner.UID, &none, &c); err != nil {
		return nil, err
	}
	if err := CheckVMName(name); err != nil {
		return nil, err
	}
	if !m.reserve(name) {
		return nil, fmt.Errorf("%s: %w", name, ErrExists)
	}
	defer m.release(name)
	r := newRecord(name, owner, c)
	if image.Root != "" {
		r.Base = image.Digest
	}
	dir := filepath.Join(m.vmsDir, r.ID) // without a record the next start removes it
	spec := &Spec{ID: r.ID, Name: name, StateDir: m.o.StateDir, Dir: dir, Config: c, Image: *image,
		Disks: disksOf(dir, &c, image), UID: -1, GID: -1}
	claimed, err := m.claim(r, image.footprint())
	if err != nil {
		return nil, err
	}
	err = makeDir(spec)
	if err == nil {
		err = fill(spec, m.driver(c.VMM))
	}
	if err == nil && len(spec.Disks) > 0 {
		err = syncDisks(spec)
	}
	if err != nil {
		m.ledger.drop(claimed.hold)
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	v, err := m.add(ctx, r, claimed, "imported")
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return v, nil
}
