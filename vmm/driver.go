package vmm

import (
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"time"

	"banger/vmm/guest"
)

// Driver starts machines of one kind of VMM. It embeds BaseDriver, whose methods refuse what this
// driver cannot do. Many goroutines may call its methods.
type Driver interface {
	// Capabilities returns the same value at every call, and does not block.
	Capabilities() Capabilities
	// Start boots a machine and returns when its CPUs run. After an error or the end of ctx nothing
	// is left: no process, no socket. The driver calls notify from a goroutine of its own, never
	// while Start runs and never after NoticeExited; notify must not block.
	Start(ctx context.Context, spec *Spec, notify func(Notice)) (Machine, error)
	// Adopt finds the machine that an earlier daemon started from the same spec. proc may be zero
	// when that daemon died before it recorded the process; the machine is then found by its UUID.
	// ErrNotFound means that no such process lives and that its sockets in spec.Dir were removed.
	Adopt(ctx context.Context, spec *Spec, proc Process, notify func(Notice)) (Machine, error)
	// Sweep ends every process of this driver for the given state directory whose UUID keep
	// refuses. The Manager calls it once, before any Start or Adopt.
	Sweep(ctx context.Context, stateDir string, keep func(uuid string) bool) error
	// HostMemory returns how many bytes of the host a machine may use at most: the guest's memory
	// and the VMM's own. It depends on spec's Config and on the Memory of its Image alone, and does
	// not block.
	HostMemory(spec *Spec) int64

	// The rest is FeatureDisks: the disks of a VM and the snapshots in them. While the VM runs,
	// only its Machine uses its disks. These methods block until they are done or ctx ends.

	// MakeDisks makes the missing disks of spec, each whole or not at all, and grows those that are
	// smaller than their Size. A new disk without a Base has an empty file system.
	MakeDisks(ctx context.Context, spec *Spec) error
	// Disks returns the snapshots in the disks of a VM that does not run.
	Disks(spec *Spec) Snapshotter
	// RestoreDisks resets the disks of a VM that does not run to the snapshot with that tag. It may
	// be repeated, also after a crash. A disk without the snapshot stays as it is. The content is
	// durable when it returns. ErrNotFound means that no disk has it and that nothing was changed.
	RestoreDisks(ctx context.Context, spec *Spec, tag string) error
	// ExportDisk writes a disk to a new file without a name, and returns that at its beginning. The
	// file has no snapshots, and of an overlay only what its Base lacks. The caller closes it.
	ExportDisk(ctx context.Context, spec *Spec, d Disk) (*os.File, error)
	// ImportDisks turns files that ExportDisk or anybody else wrote into disks over their Bases. It
	// changes them in place and removes none. ErrInvalid means that one is damaged or refers to
	// another file.
	ImportDisks(ctx context.Context, spec *Spec) error
}

// Spec is all that a driver needs to know of a VM. It is inert data. The caller closes its files.
type Spec struct {
	Serial   uint64
	ID       string // UUID
	Name     string
	StateDir string // the daemon's
	Dir      string // the VM's directory, the daemon's; exists, and in it DisksDir, owned by UID/GID
	Config   Config
	Image    Image
	Disks    []Disk
	// Snapshots is how many the disks have.
	Snapshots int
	NIC       NIC
	UID, GID  int       // to run the VMM as; both -1: as the daemon itself
	Log       io.Writer // lines for the VM's `log`
	LogFile   *os.File  // the same file, O_APPEND: the VMM's stdout and stderr
}

// Disk is one virtio block device.
type Disk struct {
	Path     string
	Format   string // raw or qcow2
	ReadOnly bool
	Size     int64 // least, bytes; 0: Base's
	// Base is the disk below an overlay, empty for none. The driver makes Path before the first start.
	Base       string
	BaseFormat string
}

// NIC is the guest's network device.
type NIC struct {
	Mode NetMode
	Tap  *os.File // NetBridge, at Start only: with IFF_VNET_HDR; the caller closes it
	MAC  string
}

// Image is what a machine boots from.
type Image struct {
	Name     string
	Kernel   string // path of a vmlinux with a PVH note, or a bzImage; empty when Firmware
	Initrd   string // path, empty for none
	Firmware bool   // the machine's firmware boots what is on Root

	// Root is the path of the disk with the root file system, empty for none. Each VM has an overlay
	// of it. RootFormat is raw or qcow2.
	Root       string
	RootFormat string
	RootSize   int64 // bytes of Root as the guest sees it

	Cmdline string
	Memory  int64 // least, bytes
	Digest  string
	Size    int64
	Created time.Time
	Source  string
}

// Notice is what a machine tells of itself.
type Notice struct {
	Kind   NoticeKind
	Detail string // one line for people
}

// NoticeKind tells notices apart.
type NoticeKind string

const (
	NoticeExited NoticeKind = "exited" // the last notice of a machine; Machine.Exit says how
	NoticePanic  NoticeKind = "panic"  // the guest's kernel panicked
	NoticePaused NoticeKind = "paused" // the VMM stopped the CPUs by itself, as at an I/O error
	NoticeFull   NoticeKind = "full"   // the same without space for a disk; Detail names it
	NoticeError  NoticeKind = "error"
)

// Exit is how a machine ended.
type Exit struct {
	// Orderly is true when the guest powered itself off or was told to: the
	// VM is then stopped; otherwise it failed, and Reason says why.
	Orderly bool
	// Rebooted is true when the guest asked for a reset: the VM starts again.
	Rebooted bool
	Reason   string
	// Status is how its process ended, nil if unknown. Only the daemon that started it can know.
	Status *guest.ExecStatus
}

// String is what the event says: the status, or `unknown`, and the reason.
func (e Exit) String() string {
	status := "unknown"
	if e.Status != nil {
		status = e.Status.String()
	}
	return status + ": " + e.Reason
}

// Machine is a running VMM. It embeds BaseMachine, whose methods refuse what this machine cannot do.
type Machine interface {
	Process() Process
	// Done is closed when the VMM's process is gone; Exit is valid from then on.
	Done() <-chan struct{}
	Exit() Exit
	// Kill ends the process at once and returns when it is gone.
	Kill(ctx context.Context) error
	// Close releases the machine without ending it: it closes connections and ends goroutines.
	Close() error

	// The rest is optional. Methods with a context block until the VMM has answered or ctx ends.

	// Guest returns the agent, always the same; nil if machines of this driver have none.
	Guest() guest.Agent
	// Console returns the serial console, nil if there is none. The VMM itself also appends what
	// the guest prints to ConsoleFile in the VM's directory.
	Console() Console
	// Pause stops the CPUs, Resume continues them.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Paused reports whether the CPUs are stopped. It does not block.
	Paused() bool
	// Full reports whether the VMM stopped the CPUs because a disk found no space on the host. It
	// is false after the next Pause or Resume. It does not block.
	Full() bool
	Snapshotter
	// GrowDisk makes the work disk that many bytes long. The guest notices it by itself.
	GrowDisk(ctx context.Context, size int64) error
	// PressPower presses the power button, and does not wait for the guest. ErrUnsupported means
	// that the guest is known to ignore it.
	PressPower(ctx context.Context) error
	// Forward makes exactly these the host's ports that the VMM forwards to a guest with NetUser,
	// whatever they were before. After an error they are as they were.
	Forward(ctx context.Context, all []Publication) error
	// Limit puts limits in force in place of those before, but for NetMax, which is Network's. After
	// an error those before are in force. Driver.Start has put those of its Spec in force before the
	// guest runs.
	Limit(ctx context.Context, l *Limits) error
	// Balloon leaves the guest that many bytes of its memory, or all for 0. It returns before the
	// guest has given the rest up.
	Balloon(ctx context.Context, bytes int64) error
	// BlockStats returns what the VMM counts of its disks.
	BlockStats(ctx context.Context) (BlockStats, error)
	// Metrics returns what the VMM reports of itself, as one JSON object.
	Metrics(ctx context.Context) (json.RawMessage, error)
}

// Snapshotter takes snapshots of all disks of a VM at one moment. Their tags have a-z, 0-9 and '-'.
// A Machine has those of its running guest, and Driver.Disks returns those of a VM that does not
// run. The methods block until their work is durable or ctx ends; after that the work may still be
// done.
type Snapshotter interface {
	// TakeSnapshot takes a snapshot of all disks. After an error some disks may have it.
	TakeSnapshot(ctx context.Context, tag string) error
	// DropSnapshot removes it from all disks. It returns nil where there is none.
	DropSnapshot(ctx context.Context, tag string) error
}

// Console is a serial line.
type Console interface {
	// Write types p. It blocks while the guest does not take input, until ctx ends.
	Write(ctx context.Context, p []byte) (int, error)
	// Subscribe gives what is printed from now on. Read blocks until there is
	// something, ctx ends (its error) or the machine is gone (io.EOF). A subscriber too slow
	// for 256 KiB loses the oldest bytes. The caller closes it.
	Subscribe() ConsoleReader
}

// ConsoleReader is one reader of a Console.
type ConsoleReader interface {
	Read(ctx context.Context, p []byte) (int, error)
	Close() error
}

// BlockStats are the counters of all of a machine's disks together, since its VMM started.
type BlockStats struct {
	ReadBytes, WriteBytes uint64
	ReadOps, WriteOps     uint64
}

// Images gives what VMs boot from. Implemented by vmm/image.
type Images interface {
	// Names of the images that exist, sorted.
	Names() []string
	// Image of that name, or ErrNotFound.
	Image(name string) (Image, error)
	// Seed returns the raw disk that configures a guest which boots a kernel of its own. Equal
	// arguments return equal bytes as long as the agent is the same. It ignores time and keys of c,
	// which the agent receives later.
	Seed(id string, mode NetMode, c guest.Config) ([]byte, error)
}

// Network connects guests. Implemented by vmm/network. Without privileges it supports NetUser and
// NetNone only.
type Network interface {
	// Check reports whether the mode can be used here. ErrNotPermitted or ErrUnsupported if not.
	Check(mode NetMode) error
	// Prefix is the subnet of the bridge; Gateway is the host's address in it.
	Prefix() netip.Prefix
	Gateway() netip.Addr
	// Address6 returns the IPv6 address of the guest with that IPv4 address, with the length of its
	// subnet. Gateway6 returns the host's address. Both are invalid where guests have no IPv6.
	Address6(address netip.Addr) netip.Prefix
	Gateway6() netip.Addr
	// MTU of the bridge, bytes; 0 where there is none.
	MTU() int
	// Connect puts c in force for a guest: its addresses, its reach and its published ports. It
	// precedes Tap and may be repeated. An error changes nothing. ErrAddressInUse, ErrAccess or
	// ErrInvalid for a port that cannot be published.
	Connect(c Connection) error
	// Disconnect undoes Connect, if there was one.
	Disconnect(serial uint64)
	// Settle is called once, after Connect of all guests that an earlier daemon left running. It
	// ends what that daemon put in force for others.
	Settle() error
	// Tap makes the VM's tap in the bridge, up. It vanishes when its last open file is closed, which
	// the VMM has.
	Tap(ctx context.Context, serial uint64, uuid string) (*os.File, error)
	// LinkStats returns the counters of all taps by the VM's serial. Only the kernel blocks it.
	LinkStats() (map[uint64]LinkStats, error)
	// Release removes what no guest uses any more, at the daemon's end.
	Release() error
}

// Connection is what a guest on the bridge is and may do.
type Connection struct {
	Serial  uint64
	MAC     string
	Address netip.Addr
	Isolate bool // no other guest is reached, whatever that one's setting
	Limit   NetMax
	Publish []Publication
}

// The addresses of a guest with NetUser, by default of QEMU's user networking (qemu(1), -netdev).
var (
	UserAddress = netip.MustParsePrefix("10.0.2.15/24")
	UserGateway = netip.MustParseAddr("10.0.2.2")
	UserDNS     = netip.MustParseAddr("10.0.2.3")
)

// LinkStats are the counters of a VM's tap on the host. Received is what the guest has sent.
type LinkStats struct {
	RxBytes, TxBytes, RxPackets, TxPackets uint64
}

// Store keeps the records. Every method returns when its change is durable (on disk, synced). Calls
// at the same time may share one commit. The end of ctx ends the wait, not the write. Implemented
// by vmm/store.
type Store interface {
	// Load returns all records, for the start of the daemon.
	Load(ctx context.Context) ([]Record, error)
	// Insert adds a record and sets its Serial and MAC. ErrExists if another has the name.
	Insert(ctx context.Context, r *Record) error
	// Update writes all of r by its Serial. ErrExists if another has the name.
	Update(ctx context.Context, r *Record) error
	// Delete deletes the record and frees its address.
	Delete(ctx context.Context, serial uint64) error
	// Lease returns the VM's address in prefix: the one that it has, or the lowest free one. That
	// is never the network's, the gateway's or the broadcast address. ErrNoSpace if none is free.
	Lease(ctx context.Context, serial uint64, prefix netip.Prefix, gateway netip.Addr,
	) (netip.Addr, error)

	// Snapshots returns all snapshots of all VMs, oldest first, for the start of the daemon.
	Snapshots(ctx context.Context) ([]DiskSnapshot, error)
	// AddSnapshot adds a snapshot and sets its Number, which no other of the VM has. ErrNoSpace if
	// no number is left.
	AddSnapshot(ctx context.Context, d *DiskSnapshot) error
	// UpdateSnapshot and DeleteSnapshot find the snapshot by its Serial and Number.
	UpdateSnapshot(ctx context.Context, d *DiskSnapshot) error
	DeleteSnapshot(ctx context.Context, d *DiskSnapshot) error

	// Quotas returns all rules, for the start of the daemon.
	Quotas(ctx context.Context) ([]QuotaRule, error)
	// SetQuota adds a rule, or replaces that of the same uid and quota.
	SetQuota(ctx context.Context, r QuotaRule) error
	// DeleteQuota deletes the rule of a uid for a quota. ErrNotFound if there is none.
	DeleteQuota(ctx context.Context, uid int64, quota string) error
	Close() error
}
