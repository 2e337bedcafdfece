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

// Driver starts machines of one kind of VMM. Its methods may be called from many goroutines.
type Driver interface {
	// Name is the word of the file `vmm`.
	Name() string
	// Start boots a machine and returns when its CPUs run. On an error or a
	// cancelled ctx nothing is left: no process, no socket.
	// notify is called (never while Start runs, never after Exited) from the
	// driver's own goroutine and must not block.
	Start(ctx context.Context, spec *Spec, notify func(Notice)) (Machine, error)
	// Adopt finds the machine that an earlier daemon started from the same spec.
	// proc may be zero when the daemon died before it could record it; the
	// machine is then found by its UUID. ErrNotFound: no such process lives, and
	// whatever it left in spec.Dir (sockets) has been removed.
	Adopt(ctx context.Context, spec *Spec, proc Process, notify func(Notice)) (Machine, error)
	// Sweep ends every process this driver ever started for the given state
	// directory whose UUID keep does not want. It is called once, before any Start or Adopt.
	Sweep(ctx context.Context, stateDir string, keep func(uuid string) bool) error
}

// Unwired is a Driver whose machines use no network of the host: no address
// is leased for them and no tap is made.
type Unwired interface{ Unwired() }

// Spec is all that a driver needs to know of a VM. It is inert data; files stay owned by the caller.
type Spec struct {
	Serial   uint64
	ID       string // UUID
	Name     string
	StateDir string // the daemon's
	Dir      string // the VM's directory, the daemon's; exists, and in it DisksDir, owned by UID/GID
	Config   Config
	Image    Image
	Disks    []Disk
	NIC      NIC
	UID, GID int       // to run the VMM as; both -1: as the daemon itself
	Log      io.Writer // lines for the VM's `log`
	LogFile  *os.File  // the same file, O_APPEND: the VMM's stdout and stderr
}

// Disk is one virtio block device.
type Disk struct {
	Path     string
	Format   string // raw or qcow2
	ReadOnly bool
	Size     int64 // least, bytes; 0: Base's
	// Base is what the disk is an overlay of, empty for none: the driver makes Path before the first start.
	Base       string
	BaseFormat string
}

// NIC is the guest's network device.
type NIC struct {
	Mode NetMode
	Tap  *os.File // NetBridge, at Start only: an open tap with IFF_VNET_HDR; Start passes it on, the caller closes it
	MAC  string
}

// Image is what a machine boots from.
type Image struct {
	Name     string
	Kernel   string // path of a vmlinux with a PVH note, or a bzImage; empty when Firmware
	Initrd   string // path, empty for none
	Firmware bool   // the machine's firmware boots what is on Root

	// Root is the path of the disk with the root file system, of which each VM has an overlay; empty for none. RootFormat is raw or qcow2.
	Root       string
	RootFormat string

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
	NoticePaused NoticeKind = "paused" // the VMM stopped the CPUs by itself, e.g. because of an I/O error
	NoticeFull   NoticeKind = "full"   // the same because a disk found no space on the host: Detail names the disk
	NoticeError  NoticeKind = "error"
)

// Exit is how a machine ended.
type Exit struct {
	// Orderly is true when the guest powered itself off or was told to: the
	// VM is then stopped; otherwise it failed, and Reason says why.
	Orderly bool
	Reason  string
	// Status is how its process ended; nil if that is not known: the kernel tells it to the daemon that started it only.
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

// Machine is a running VMM. What it can do beyond this is an interface of its own, found by type
// assertion, such as Pauser, Guester, Snapshotter and PowerButton.
type Machine interface {
	Process() Process
	// Accel is what runs the CPUs: "kvm", "tcg", "fake".
	Accel() string
	// Done is closed when the VMM's process is gone; Exit is valid from then on.
	Done() <-chan struct{}
	Exit() Exit
	// Kill ends the process at once and returns when it is gone.
	Kill(ctx context.Context) error
	// Close lets go of the machine without ending it (the daemon exits): connections closed, goroutines ended.
	Close() error
}

// Pauser is a Machine whose CPUs can be stopped and continued.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// Fuller is a Machine that knows whether its CPUs were stopped because a disk found no space on the host.
type Fuller interface {
	// Full does not block. It is false once somebody asked for the CPUs to be stopped or continued.
	Full() bool
}

// DiskKeeper is a Driver that makes the disks of its VMs and keeps snapshots in them. While the VM runs, only its Machine touches its disks.
type DiskKeeper interface {
	// MakeDisks makes those of spec's disks that are not there yet, each whole or not at all, and grows those that are smaller than
	// their Size. A new disk without a Base has an empty file system. It blocks until that is done or ctx ends.
	MakeDisks(ctx context.Context, spec *Spec) error
	// Disks gives the snapshots in the disks of a VM that does not run.
	Disks(spec *Spec) Snapshotter
	// RestoreDisks puts the disks of a VM that does not run back to the snapshot of that tag; to do it again, also after a crash, is
	// harmless. A disk that has no such snapshot stays as it is; ErrNotFound, and nothing was changed, if none has.
	RestoreDisks(ctx context.Context, spec *Spec, tag string) error
	// ExportDisk writes a disk as it is, without snapshots and of an overlay only what is not its Base's, to a new file, and gives that at its
	// beginning and without a name. The caller closes it.
	ExportDisk(ctx context.Context, spec *Spec, d Disk) (*os.File, error)
	// ImportDisks makes those of spec's disks that are there, which ExportDisk wrote or anybody else, disks over their Bases; ErrInvalid for
	// one that is damaged or that refers to any other file. It writes to them and removes none.
	ImportDisks(ctx context.Context, spec *Spec) error
}

// Snapshotter takes snapshots of all disks of a VM at one moment, named by tags of a-z, 0-9 and '-': a Machine of those of its guest,
// DiskKeeper.Disks of those of a VM that does not run. The methods block until it is done or ctx ends; it may then still happen.
type Snapshotter interface {
	// TakeSnapshot takes one of all disks. After an error some disks may have it.
	TakeSnapshot(ctx context.Context, tag string) error
	// DropSnapshot removes it from all disks; nil for those that have none of that tag.
	DropSnapshot(ctx context.Context, tag string) error
}

// DiskGrower is a Machine whose work disk can grow while it runs.
type DiskGrower interface {
	// GrowDisk makes the disk that many bytes long for the guest, which learns of it by itself. It blocks until the VMM has done it or ctx ends.
	GrowDisk(ctx context.Context, size int64) error
}

// PowerButton is a Machine whose guest can be asked to end without an agent.
type PowerButton interface {
	// PressPower returns when the button is pressed; what the guest makes of it is its own affair. ErrUnsupported for a guest
	// of which it is known that it makes nothing of it.
	PressPower(ctx context.Context) error
}

// Guester is a Machine that has an agent inside. Guest is never nil and the same for the life of the Machine.
type Guester interface {
	Guest() guest.Agent
}

// Consoler is a Machine with a serial console. What the guest prints is also
// appended to ConsoleFile in the VM's directory, by the VMM itself.
type Consoler interface {
	Console() Console
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

// BlockStatser is a Machine whose VMM counts what its disks transfer.
type BlockStatser interface {
	// BlockStats asks the VMM and blocks until it answers or ctx ends.
	BlockStats(ctx context.Context) (BlockStats, error)
}

// MetricsReader is a Machine whose VMM reports figures of its own.
type MetricsReader interface {
	// Metrics gives what the VMM reports, as one JSON object. It asks the VMM and blocks until that answers or ctx ends.
	Metrics(ctx context.Context) (json.RawMessage, error)
}

// Images gives what VMs boot from. Implemented by vmm/image.
type Images interface {
	// Names of the images that exist, sorted.
	Names() []string
	// Image of that name, or ErrNotFound.
	Image(name string) (Image, error)
}

// Seeder is an Images that can tell guests that boot a kernel of their own who they are.
type Seeder interface {
	// Seed gives the content of the raw disk from which such a guest configures itself; equal arguments give equal bytes
	// as long as the agent is the same. Of c, time and keys are not used: the agent is told them when it answers.
	Seed(id string, mode NetMode, c guest.Config) ([]byte, error)
}

// Network connects guests. Implemented by vmm/network; one without
// privileges supports NetUser and NetNone only.
type Network interface {
	// Check reports whether the mode can be used here: nil, or ErrNotPermitted/ErrUnsupported with a sentence.
	Check(mode NetMode) error
	// Prefix is the subnet of the bridge; Gateway is the host's address in it.
	Prefix() netip.Prefix
	Gateway() netip.Addr
	// Address6 is the IPv6 address of the guest with that IPv4 address, with the length of its subnet, and Gateway6 the host's;
	// both invalid where guests have none.
	Address6(address netip.Addr) netip.Prefix
	Gateway6() netip.Addr
	// MTU of the bridge, bytes; 0 where there is none.
	MTU() int
	// Connect puts in force for a guest exactly what c says: the addresses that it may use, whom it reaches, its published ports.
	// It comes before Tap and may be repeated; after an error what was in force still is. ErrAddressInUse, ErrAccess or ErrInvalid for a
	// port that cannot be published.
	Connect(c Connection) error
	// Disconnect undoes Connect, if there was one.
	Disconnect(serial uint64)
	// Settle is called once, when all guests that an earlier daemon left running were connected: what it left in force of others ends.
	Settle() error
	// Tap makes the VM's tap, in the bridge, up, and owned by nobody but its
	// open file: it vanishes when the last holder (the VMM) closes it.
	Tap(ctx context.Context, serial uint64, uuid string) (*os.File, error)
}

// Connection is what a guest on the bridge is and may do.
type Connection struct {
	Serial  uint64
	MAC     string
	Address netip.Addr
	Isolate bool // no other guest is reached, whatever that one's setting
	Publish []Publication
}

// Forwarder is a Machine whose VMM itself forwards ports of the host to a guest with NetUser.
type Forwarder interface {
	// Forward makes exactly these the forwarded ports, whatever was before, also by an earlier daemon. After an error what was still is.
	Forward(ctx context.Context, all []Publication) error
}

// StreamsOnly is a Driver whose user networking may lead streams into a guest, but bring no answers to datagrams back.
type StreamsOnly interface {
	// StreamsOnly reports whether that is so here.
	StreamsOnly() bool
}

// What a guest with NetUser is given: the defaults of QEMU's user networking (qemu(1), -netdev user).
var (
	UserAddress = netip.MustParsePrefix("10.0.2.15/24")
	UserGateway = netip.MustParseAddr("10.0.2.2")
	UserDNS     = netip.MustParseAddr("10.0.2.3")
)

// LinkStats are the counters of a VM's tap as the host sees it: what it received is what the guest sent.
type LinkStats struct {
	RxBytes, TxBytes, RxPackets, TxPackets uint64
}

// LinkStatser is a Network that counts what taps carry.
type LinkStatser interface {
	// LinkStats gives the counters of all taps by the VM's serial. It blocks for the kernel only.
	LinkStats() (map[uint64]LinkStats, error)
}
