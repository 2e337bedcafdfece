package guest

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// Agent asks the agent inside a machine. Every answer comes from the guest
// and is untrusted: implementations bound it in size, and its text is escaped where it is shown.
// Errors: ErrTimeout when ctx's deadline ends first, ErrNoAgent when the
// machine has no channel to one, ErrNotRunning when it is gone.
type Agent interface {
	// Ping returns as soon as the agent answers, and waits for it until ctx ends
	// without waking the guest: calling it while the guest still boots is how one waits for the boot.
	Ping(ctx context.Context) (Info, error)
	Listeners(ctx context.Context) ([]Listener, error)
	Stats(ctx context.Context) (Stats, error)
	Configure(ctx context.Context, c Config) error
	// PowerOff asks for an orderly shutdown; it returns when the agent has accepted it.
	PowerOff(ctx context.Context) error
}

// Streamer is an Agent whose agent also serves streams of bytes: a command's, a file transfer's.
type Streamer interface {
	// Stream begins the stream of that path, told what it is for by request, as JSON. It blocks until the agent has taken it or ctx ends;
	// the errors are those of Agent's methods. Reads and writes of what it gives block by the far end's pace, and end when the machine
	// or the agent's connection is gone. Closing ends both directions: an end of what is written is for the protocol above to tell. The caller closes it.
	Stream(ctx context.Context, path string, request any) (net.Conn, error)
}

// Freezer is an Agent whose agent can hold the guest's file systems still.
type Freezer interface {
	// Freeze writes out and holds the file systems on disks, and gives their number. The agent lets them go by itself after within,
	// whatever becomes of the host, and when one does not come to rest.
	Freeze(ctx context.Context, within time.Duration) (int, error)
	// Thaw lets them go. held reports whether they have stood still until now.
	Thaw(ctx context.Context) (held bool, err error)
}

// Info is what the agent says of itself.
type Info struct {
	Version  string  `json:"version"`
	Kernel   string  `json:"kernel"`
	Hostname string  `json:"hostname"`
	Uptime   float64 `json:"uptime"` // seconds
}

// Listener is a socket in the guest that listens (TCP) or is bound and unconnected (UDP).
type Listener struct {
	Protocol string `json:"protocol"` // tcp, udp (tcp6 and udp6 are told by Address)
	Address  string `json:"address"`  // bind address
	Port     int    `json:"port"`
	PID      int    `json:"pid"`     // 0 if not known
	Started  uint64 `json:"started"` // when the process was, in clock ticks after the guest's boot; 0 if not known
	Process  string `json:"process"`
	Command  string `json:"command"` // command line, arguments joined by spaces
}

// Stats are the guest's own figures.
type Stats struct {
	MemTotal     int64   `json:"mem_total_bytes"`
	MemAvailable int64   `json:"mem_available_bytes"`
	Load1        float64 `json:"load1"`
	Procs        int     `json:"procs"`
	Uptime       float64 `json:"uptime"`           // seconds
	DiskUsed     int64   `json:"disk_used_bytes"`  // of the file systems on disks, summed
	DiskTotal    int64   `json:"disk_total_bytes"` // 0 if the guest has none
}

// Zone is the domain of VMs' names. Resolvers in guests search it.
const Zone = "vm"

// Config is what the agent sets in the guest. Zero fields are left alone.
type Config struct {
	Hostname string       `json:"hostname,omitempty"`
	MAC      string       `json:"mac,omitempty"` // which interface Address is for
	Address  netip.Prefix `json:"address"`       // with the subnet's length
	Gateway  netip.Addr   `json:"gateway"`
	Address6 netip.Prefix `json:"address6"`
	Gateway6 netip.Addr   `json:"gateway6"`
	DNS      []netip.Addr `json:"dns,omitempty"`
	MTU      int          `json:"mtu,omitempty"` // bytes
	Time     time.Time    `json:"time"`          // wall clock to set

	AuthorizedKeys string `json:"authorized_keys,omitempty"` // lines of authorized_keys of sshd(8)
	HostKey        string `json:"host_key,omitempty"`        // of sshd(8), PEM
}
