// Package vmm says what a VM is and how it lives.
//
// The [Manager] owns every [VM] of one state directory. A VM has one transition at a time (start,
// stop, kill, pause, ...), in a goroutine of the Manager's, which does the I/O. Readers share the
// immutable [Snapshot] that the last change published, so that they never wait for a boot. The
// Manager also runs a goroutine that sweeps for idle VMs, one for each VM that waits for its agent,
// and one for each whose image's program runs; Close waits for all of them.
//
// The package does not know the mount: its errors wrap ErrNotFound and the like, and fs maps those
// to errnos. It uses the outside through small interfaces, above all [Driver], [Store], [Network]
// and [Images]. The sub-packages implement them and import vmm, never the reverse.
package vmm

import (
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"banger/internal/value"
	"banger/vmm/guest"
)

// State is where a VM is in its life, as the file `state` shows it.
type State string

const (
	Stopped  State = "stopped"
	Starting State = "starting"
	Running  State = "running"
	Paused   State = "paused"
	Stopping State = "stopping"
	Failed   State = "failed"
)

// States are all states.
var States = []State{Stopped, Failed, Starting, Running, Paused, Stopping}

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

	// These are no words of `state`. The first three are mkdir and rmdir in snapshots/ and a write
	// to restore, the fourth is an open of wait/export.
	Take    Command = "snapshot"
	Drop    Command = "removal of a snapshot"
	Restore Command = "restore"
	Export  Command = "export"

	// These are the Manager's own: a machine ended by itself, a recovery by Open, and the start
	// after a guest has rebooted.
	exit   Command = "exit"
	adopt  Command = "adoption"
	reboot Command = "reboot"
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

// Config is the settings of a VM. It is a plain value: copies are independent.
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

	MemoryTarget int64 // bytes that the balloon leaves the guest, 0 for all
	Limits
}

// Owner is the owner of a VM's or an image's directory.
type Owner struct {
	UID, GID uint32
	Mode     uint32 // permission bits of the directory, e.g. 0o755
}

// Permit decides whether a caller may change an object of the owner. It is called at the moment of
// the change, while the owner cannot change, and must not block. A nil Permit permits everything.
type Permit func(Owner) error

func (p Permit) ask(o Owner) error {
	if p == nil {
		return nil
	}
	return p(o)
}

// Record is the durable part of a VM.
type Record struct {
	Serial  uint64 // the store chooses it and never reuses it; node numbers are computed from it
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
	// Rebooting is true while the VM is starting because its guest has rebooted.
	Rebooting bool
	Held      bool       // it is removed when its holder is gone; see VM.Hold
	Base      string     // digest of the image at the last start; empty for none and the built-in one
	Address   netip.Addr // leased until the VM is removed; invalid before its first lease
}

// Process names one process for good: pids are reused, a pid with its start time is not.
type Process struct {
	PID       int    // 0 if there is none
	StartTime uint64 // clock ticks after boot, field 22 of /proc/PID/stat (proc(5))
}

// Snapshot is the immutable state of a VM at one moment. Readers share it.
type Snapshot struct {
	Record
	CurrentRun
	// Changed has the times at which settings and facts last changed, by file name ("state",
	// "memory", "config", ...). Those without one have not changed since Created.
	Changed Changes
	// Saved are the snapshots of the disks, oldest first, with those half made or half removed.
	// Kept returns the complete ones.
	Saved []DiskSnapshot
	// Named is true while the host finds guests by their names; see DNS.
	Named bool
	// Dir is the VM's directory on the host, which only the daemon enters. It holds the console,
	// the log and, in DisksDir, the disks.
	Dir string
}

// CurrentRun is the run of a VM. A start, an adoption and an end replace the whole value. It is
// zero for a VM that does not run.
type CurrentRun struct {
	// Machine is nil unless State.Alive().
	Machine Machine
	// Ready is true once the agent of this run has accepted address, host name and time.
	Ready   bool
	ReadyIn time.Duration // from the start of the VMM to Ready
	// End is how the program of the image ended, or why it could not begin. It is nil before, and
	// where the agent says nothing about it. The guest may have invented it.
	End *guest.End
	// Address6 is the guest's IPv6 address, invalid if it has none.
	Address6 netip.Addr
	// Since is when the machine of this run was started or adopted, by the monotonic clock.
	Since time.Time
}

// Agent returns the guest's agent, nil where nothing runs or the machine has none.
func (r *CurrentRun) Agent() guest.Agent {
	if r.Machine == nil {
		return nil
	}
	return r.Machine.Guest()
}

// Changes are times of changes by name. They are immutable. A list needs a tenth of a map's memory,
// and each VM has one.
type Changes []change

type change struct {
	name string
	at   time.Time
}

// Of returns when a name last changed, false if it never did.
func (c Changes) Of(name string) (time.Time, bool) {
	for i := range c {
		if c[i].name == name {
			return c[i].at, true
		}
	}
	return time.Time{}, false
}

// with returns changes in which the names have changed now.
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

// GuestAddress returns the address at which the host reaches the guest, invalid if it cannot.
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

// DisksDir is the directory of the disks of the VM whose directory is dir. It belongs to the VM's
// user, so that a VMM that its guest has taken over can put any file there: open its files with
// host.OpenRegular only.
func DisksDir(dir string) string { return filepath.Join(dir, "disks") }

// DiskPath is the path of a disk of the VM whose directory is dir.
func DiskPath(dir, name string) string { return filepath.Join(DisksDir(dir), name) }

// Names of files in a VM's directory on the host.
const (
	// These are in DisksDir, but for the seed, which no VMM writes.
	DiskOverlay = "overlay.img" // the system disk, qcow2; absent for images without a disk
	DiskWork    = "work.qcow2"  // the VM's own writable disk
	DiskRaw     = "work.img"    // the same, raw, of a banger without snapshots
	DiskSeed    = "seed.img"    // settings for cloud-init, ISO 9660; absent for others

	// These are beside DisksDir.
	ConsoleFile = "console.log" // the guest's output, trimmed at its head
	LogFile     = "log"         // the VMM's output and banger's actions
	HostKeyFile = "ssh_host_ed25519_key"
)

// Errors that callers test for with errors.Is. fs/errno.go maps each to one errno. Functions wrap
// them in a sentence that names the object.
var (
	ErrInvalid      = guest.ErrInvalid                  // EINVAL
	ErrNameTooLong  = errors.New("name too long")       // ENAMETOOLONG
	ErrExists       = errors.New("already exists")      // EEXIST
	ErrNotFound     = guest.ErrNotFound                 // ENOENT
	ErrBusy         = guest.ErrBusy                     // EBUSY
	ErrNotRunning   = guest.ErrNotRunning               // EHOSTDOWN
	ErrTimeout      = guest.ErrTimeout                  // ETIMEDOUT
	ErrNoAgent      = guest.ErrNoAgent                  // EHOSTUNREACH
	ErrProtected    = errors.New("the VM is protected") // EPERM
	ErrNotPermitted = errors.New("not permitted")       // EPERM
	ErrAccess       = guest.ErrAccess                   // EACCES
	ErrUnsupported  = guest.ErrUnsupported              // EOPNOTSUPP
	ErrAddressInUse = errors.New("the port is in use")  // EADDRINUSE
	ErrTooBig       = guest.ErrTooBig                   // E2BIG
	ErrNoSpace      = errors.New("no space left")       // ENOSPC
	ErrNoMemory     = errors.New("not enough memory")   // ENOMEM
	ErrQuota        = errors.New("over quota")          // EDQUOT
	ErrGone         = guest.ErrGone                     // EIO
)
