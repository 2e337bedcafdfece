package vmm

import (
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"banger/internal/value"
)

// State is where a VM is in its life; its text is what the file `state` shows.
type State string

const (
	Stopped  State = "stopped"
	Starting State = "starting"
	Running  State = "running"
	Paused   State = "paused"
	Stopping State = "stopping"
	Failed   State = "failed"
)

// Alive reports whether a VM in this state has a VMM process whose CPUs have run.
func (s State) Alive() bool { return s == Running || s == Paused || s == Stopping }

// Down reports whether a VM in this state has no VMM, and is not about to have one.
func (s State) Down() bool { return s == Stopped || s == Failed }

// Command is a word that a user writes to `state`.
type Command string

const (
	Start   Command = "start"
	Stop    Command = "stop"
	Restart Command = "restart"
	Kill    Command = "kill"
	Pause   Command = "pause"
	Resume  Command = "resume"

	Take    Command = "snapshot" // these three are no words of `state`: mkdir and rmdir in snapshots/
	Drop    Command = "removal of a snapshot"
	Restore Command = "restore"
	Export  Command = "export" // nor is this: wait/export

	exit  Command = "exit"     // no user's: what the Manager does when a machine ends by itself
	adopt Command = "adoption" // nor this: what Open does with a VM that was not stopped
)

// NetMode is how a guest is connected.
type NetMode string

const (
	NetBridge NetMode = "bridge" // a tap on banger's bridge; needs root
	NetUser   NetMode = "user"   // the VMM's own NAT; no privileges, guest not reachable
	NetNone   NetMode = "none"
)

// NoLimit is the duration written as `max`.
const NoLimit = value.NoLimit

// Config is what a user may set of a VM. It is a plain value: copies are independent.
type Config struct {
	Image       string
	CPUs        int
	Memory      int64 // bytes
	Disk        int64 // bytes of the work disk, 0 for none
	Cmdline     string
	VMM         string // name of a Driver
	Net         NetMode
	Autostart   bool
	IdleTimeout time.Duration // NoLimit for `max`
	StopTimeout time.Duration
	Protected   bool
	Isolate     bool // neither reaches nor is reached by other VMs
	ExposeFS    bool // the guest's files are listed

	// Lists of one entry per line, without an end of line after the last.
	Publish        string // host ports that lead to ports of the guest
	AuthorizedKeys string // ssh keys that may log in, as authorized_keys of sshd(8)
}

// Owner is who a VM's directory belongs to.
type Owner struct {
	UID, GID uint32
	Mode     uint32 // permission bits of the directory, e.g. 0o755
}

// Permit decides whether somebody may do something to what belongs to the owner. It is asked at the
// moment of the change, when the owner cannot become another. It does not block. A nil Permit
// permits everything.
type Permit func(Owner) error

func (p Permit) ask(o Owner) error {
	if p == nil {
		return nil
	}
	return p(o)
}

// Record is what the store keeps of a VM; all of it survives the daemon.
type Record struct {
	Serial  uint64 // given by the store, never reused; node numbers are computed from it
	ID      string // UUID
	Name    string
	Config  Config
	Owner   Owner
	Created time.Time
	Started time.Time // zero if never
	Touched time.Time
	State   State
	StopBy  time.Time // when a guest that is stopping is killed; zero in other states
	Error   string    // the last failure in one sentence
	BootID  string    // of the host, when State was last recorded as living
	Process Process
	Run     uint64 // counts the starts
	MAC     string
	Base    string     // digest of the image at the last start, which the overlay is over; empty if there was none, and for the built-in one
	Address netip.Addr // leased address, kept until the VM is removed; invalid if none was leased yet
}

// Process names one process for good: pids are reused, a pid with its start time is not.
type Process struct {
	PID       int    // 0 if there is none
	StartTime uint64 // clock ticks after boot, field 22 of /proc/PID/stat (proc(5))
}

// Snapshot is an immutable picture of a VM. Readers share it; nobody changes it.
type Snapshot struct {
	Record
	CurrentRun
	// Changed tells when each setting or fact last changed, by file name
	// ("state", "memory", "config", ...); Created for what is not in it.
	Changed Changes
	// Saved are the snapshots of the disks, oldest first, also those half made or half removed; Kept gives those that are there.
	Saved []DiskSnapshot
	// Named is true while the host finds guests by their names; see DNS.
	Named bool
	// Dir is the VM's directory on the host, which only the daemon enters. It holds the console,
	// the log and, in DisksDir, the disks.
	Dir string
}

// CurrentRun is what the daemon knows of a VM from its start until its machine is gone. A start, an
// adoption and an end replace the whole of it; the zero value stands for a VM that does not run.
type CurrentRun struct {
	// Machine is what runs, nil unless State.Alive().
	Machine Machine
	// Ready is true once the guest's agent of this run has answered and was
	// told its address, host name and time.
	Ready   bool
	ReadyIn time.Duration // from the start of the VMM to Ready
	// Address6 is the guest's IPv6 address, invalid if it has none.
	Address6 netip.Addr
	// Since is when the machine of this run was started or adopted, by the
	// monotonic clock; zero while nothing runs.
	Since time.Time
}

// Changes are the times at which things last changed, by their names. Immutable: a list is a tenth of a map, and there are as many as VMs.
type Changes []change

type change struct {
	name string
	at   time.Time
}

// Of gives the time of one change; false if it never was one.
func (c Changes) Of(name string) (time.Time, bool) {
	for i := range c {
		if c[i].name == name {
			return c[i].at, true
		}
	}
	return time.Time{}, false
}

// with gives changes in which those of the names are now.
func (c Changes) with(now time.Time, names ...string) Changes {
	changed := make(Changes, len(c), len(c)+len(names))
	copy(changed, c)
	for _, name := range names {
		i := slices.IndexFunc(changed, func(x change) bool { return x.name == name })
		if i < 0 {
			i = len(changed)
			changed = append(changed, change{name: name})
		}
		changed[i].at = now
	}
	return changed
}

// GuestAddress is the address at which the host reaches the guest now, invalid if it cannot.
func (s *Snapshot) GuestAddress() netip.Addr {
	if s.State.Alive() && s.Config.Net == NetBridge {
		return s.Address
	}
	return netip.Addr{}
}

// GuestAddress6 is GuestAddress for IPv6.
func (s *Snapshot) GuestAddress6() netip.Addr {
	if s.GuestAddress().IsValid() {
		return s.Address6
	}
	return netip.Addr{}
}

// DisksDir is the directory of the disks of the VM whose directory is dir. It belongs to the
// VM's user, and with it whatever a VMM that its guest has taken over puts there: open nothing
// in it but with host.OpenRegular.
func DisksDir(dir string) string { return filepath.Join(dir, "disks") }

// DiskPath is the path of a disk of the VM whose directory is dir.
func DiskPath(dir, name string) string { return filepath.Join(DisksDir(dir), name) }

// Names of files in a VM's directory on the host.
const (
	// These are in DisksDir, but for the seed, which no VMM writes.
	DiskOverlay = "overlay.img" // the system disk's overlay, qcow2; absent for images without a disk
	DiskWork    = "work.qcow2"  // the VM's own writable disk
	DiskRaw     = "work.img"    // the same, raw, as banger made it before it had snapshots
	DiskSeed    = "seed.img"    // what cloud-init configures a guest with a kernel of its own from, ISO 9660; absent for others

	// These are beside DisksDir.
	ConsoleFile = "console.log" // what the guest printed, trimmed from its beginning
	LogFile     = "log"         // what the VMM printed and banger did
	HostKeyFile = "ssh_host_ed25519_key"
)
