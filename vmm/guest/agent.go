package guest

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// Agent is the agent of a guest. Its answers are not trusted: implementations bound their size, and
// their text is escaped where it is shown. Methods return ErrTimeout when ctx's deadline ends
// first, ErrNoAgent for a machine without a channel to an agent, and ErrNotRunning when the machine
// is gone.
type Agent interface {
	// Ping returns as soon as the agent answers. While the guest boots it waits until ctx ends,
	// without waking the guest.
	Ping(ctx context.Context) (Info, error)
	Listeners(ctx context.Context) ([]Listener, error)
	Stats(ctx context.Context) (Stats, error)
	Configure(ctx context.Context, c Config) error
	// PowerOff asks for an orderly shutdown. It returns when the agent has accepted.
	PowerOff(ctx context.Context) error
}

// Streamer is an Agent that also serves streams of bytes, for commands and files.
type Streamer interface {
	// Stream begins the stream of a path, with a request as JSON. It blocks until the agent accepts
	// or ctx ends, and returns the errors of Agent's methods. The stream ends with the machine and
	// with the agent's connection. The caller closes it. Close ends both directions: a protocol
	// that needs to end one alone does so itself.
	Stream(ctx context.Context, path string, request any) (net.Conn, error)
}

// Freezer is an Agent that can freeze the guest's file systems.
type Freezer interface {
	// Freeze writes out and freezes the file systems on disks, and returns their number. The agent
	// thaws them after that time, and when one cannot be frozen.
	Freeze(ctx context.Context, within time.Duration) (int, error)
	// Thaw thaws them. held reports whether they were frozen until now.
	Thaw(ctx context.Context) (held bool, err error)
}

// Info is the answer to a ping.
type Info struct {
	Version  string  `json:"version"`
	Kernel   string  `json:"kernel"`
	Hostname string  `json:"hostname"`
	Uptime   float64 `json:"uptime"` // seconds

	// Ends is true if the agent serves EndStream.
	Ends bool `json:"ends,omitempty"`
}

// Listener is a socket in the guest that listens (TCP), or is bound and unconnected (UDP).
type Listener struct {
	Protocol string `json:"protocol"` // tcp or udp, whatever the family of Address
	Address  string `json:"address"`  // bind address
	Port     int    `json:"port"`
	PID      int    `json:"pid"`     // 0 if unknown
	Started  uint64 `json:"started"` // of the process, in clock ticks after the boot; 0 if unknown
	Process  string `json:"process"`
	Command  string `json:"command"` // arguments joined by spaces
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

// Config is what the agent sets in the guest. It leaves zero fields alone.
type Config struct {
	Hostname string       `json:"hostname,omitempty"`
	MAC      string       `json:"mac,omitempty"` // of the interface that gets the addresses
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
