package vmm

import (
	"context"
	"log/slog"
	"time"
)

// Options are what a Manager is made of. The Manager closes none of them but the Store.
type Options struct {
	StateDir string
	Store    Store
	Drivers  []Driver // the first is the default
	Network  Network
	Images   Images
	Log      *slog.Logger
	// Defaults for new VMs; Memory 0 stands for the image's own.
	Defaults Config
	// VMUIDBase, when not 0, runs the VMM of serial N as uid and gid VMUIDBase+N.
	VMUIDBase int
	// Sweep is how often the idle_timeout sweep looks; 1 s if 0.
	Sweep time.Duration
}

// Manager owns all VMs of one state directory.
type Manager struct{}

// Open loads the records, adopts what still runs, marks what died, removes what belongs to no
// record, and begins the autostarts. It returns when every VM may be used.
func Open(ctx context.Context, o Options) (*Manager, error) { panic("not built yet") }

// Close lets go of the running machines without ending them, waits for the transitions under way
// (until ctx ends) and for every goroutine of the Manager, and closes the store.
func (m *Manager) Close(ctx context.Context) error { panic("not built yet") }

// Create makes a VM with the default settings. ErrInvalid, ErrNameTooLong, ErrExists.
func (m *Manager) Create(ctx context.Context, name string, owner Owner) (*VM, error) {
	panic("not built yet")
}

// Remove destroys a VM and its disks. ErrNotFound, ErrBusy unless stopped or failed, ErrProtected.
func (m *Manager) Remove(ctx context.Context, name string) error { panic("not built yet") }

// Rename renames a VM. ErrNotFound, ErrBusy unless stopped or failed, ErrExists, ErrInvalid, ErrNameTooLong.
func (m *Manager) Rename(ctx context.Context, from, to string) error { panic("not built yet") }

// VM finds by name, nil if there is none. BySerial likewise. Neither blocks.
func (m *Manager) VM(name string) *VM         { panic("not built yet") }
func (m *Manager) BySerial(serial uint64) *VM { panic("not built yet") }

// VMs gives all VMs sorted by name; the slice is shared and immutable. ListChanged is when the set of names last changed.
func (m *Manager) VMs() []*VM             { panic("not built yet") }
func (m *Manager) ListChanged() time.Time { panic("not built yet") }

// Events gives the events since the daemon started, at most the last EventHistory; Follow a reader of those to come.
func (m *Manager) Events() []Event     { panic("not built yet") }
func (m *Manager) Follow() EventReader { panic("not built yet") }

// OnChange registers f to be called after each event was published, in order, from one goroutine
// of the Manager. For inotify and the invalidation of names. Before Open's VMs are used.
func (m *Manager) OnChange(f func(Event)) { panic("not built yet") }

// VM is one virtual machine. All methods may be called from many goroutines.
type VM struct{}

// Serial never changes; Snapshot never blocks.
func (v *VM) Serial() uint64      { panic("not built yet") }
func (v *VM) Snapshot() *Snapshot { panic("not built yet") }

// Changed gives a channel that is closed when the next snapshot is published.
func (v *VM) Changed() <-chan struct{} { panic("not built yet") }

// Configure applies change to a copy of the settings and keeps the result, whole or not at all.
// ErrInvalid with a sentence; ErrBusy when a setting that is not live would change while the VM is
// not stopped or failed; a write that changes nothing succeeds always.
func (v *VM) Configure(ctx context.Context, change func(*Config) error) error { panic("not built yet") }

// Chown changes the owner; the caller has checked that it may.
func (v *VM) Chown(ctx context.Context, owner Owner) error { panic("not built yet") }

// Do gives the command and waits for its end; when ctx ends first the transition goes on and ctx's error is returned.
// Accept returns once the transition has begun (or was refused).
func (v *VM) Do(ctx context.Context, c Command) error     { panic("not built yet") }
func (v *VM) Accept(ctx context.Context, c Command) error { panic("not built yet") }

// Touch renews the lease that idle_timeout counts from; it does not block (the time is kept durably within a minute).
func (v *VM) Touch() { panic("not built yet") }

// SetTouched is `touch -d` on touched, or a write of a time.
func (v *VM) SetTouched(t time.Time) { panic("not built yet") }

// Fail records the sentence of a refused command in `error`; nil clears it.
func (v *VM) Fail(err error) { panic("not built yet") }

// PublishHealth says that health changed; it becomes an event. Equal to the last: nothing happens.
func (v *VM) PublishHealth(health string) { panic("not built yet") }

// Events and Follow: this VM's only.
func (v *VM) Events() []Event     { panic("not built yet") }
func (v *VM) Follow() EventReader { panic("not built yet") }
