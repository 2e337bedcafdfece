package collector

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"banger/vmm"
	"banger/vmm/guest"
)

// Bounds of a guest's text, in bytes.
const (
	maxAddress = 64
	maxProcess = 255
	maxCommand = 4096
)

// Ports is the table of listeners, sorted and without duplicates.
type Ports struct {
	Collected time.Time
	Rows      []Port
}

// Port is one row of `ports`. Text is the guest's own: a caller that shows it escapes it.
type Port struct {
	Scheme   string // http https tcp udp
	Port     int
	Endpoint string
	Address  string // bind address
	PID      int
	Process  string
	Command  string
}

var portsKind = register(kind{
	name: "ports", noun: "ports", polled: true, asks: asksOnly, serves: running,
	maxAge:  func(c *Collector) time.Duration { return c.portsMaxAge },
	collect: collectPorts,
})

// Ports: see Stats. vmm.ErrNoAgent when the machine has no channel to an agent.
func (c *Collector) Ports(ctx context.Context, v VM) (*Ports, error) {
	p, err := read[Ports](ctx, c, v, portsKind)
	s := v.Snapshot()
	if err != nil || s.Config.Publish == "" {
		return p, err
	}
	// What is published is known here and now: the guest is not asked again for it.
	rows := published(p.Rows, s.Config.Publications(), s.GuestAddress().IsValid())
	return &Ports{Collected: p.Collected, Rows: rows}, nil
}

// published adds a row for each published socket that leads to a port of rows. It replaces the
// port's own row if the guest itself is not reachable.
func published(rows []Port, all []vmm.Publication, reachable bool) []Port {
	out := make([]Port, 0, len(rows)+len(all))
	for _, row := range rows {
		protocol := row.Scheme
		if protocol != "udp" {
			protocol = "tcp"
		}
		bind, _ := netip.ParseAddr(row.Address)
		count := len(out)
		for _, p := range all {
			if p.Protocol == protocol && int(p.Guest) == row.Port && !bind.IsLoopback() {
				socket := row
				socket.Endpoint = endpoint(row.Scheme, p.Near().String())
				out = append(out, socket)
			}
		}
		if reachable || len(out) == count {
			out = append(out, row)
		}
	}
	return ordered(out)
}

// endpoint is a URL where the scheme is one of HTTP.
func endpoint(scheme, hostPort string) string {
	if scheme == "http" || scheme == "https" {
		return scheme + "://" + hostPort + "/"
	}
	return hostPort
}

// collectPorts asks the agent for its listeners and probes those that may speak HTTP.
func collectPorts(ctx context.Context, t *task) (any, error) {
	begun := time.Now()
	listeners, err := t.listeners(ctx)
	if err != nil {
		return nil, err
	}
	// The rest of the guest's time, and enough for one port's probes after a slow answer.
	probing, cancel := context.WithTimeout(ctx,
		max(t.c.guestTimeout-time.Since(begun), probeBudget))
	defer cancel()
	schemes := t.c.probeAll(probing, &t.e.probed, t.s.GuestAddress(), t.s.Config.Publications(),
		listeners)
	return &Ports{Rows: rows(listeners, hostOf(t.s), schemes), Collected: t.c.now()}, nil
}

// listeners asks the agent, and returns its answer canonical and bounded.
func (t *task) listeners(ctx context.Context) (listeners []guest.Listener, err error) {
	err = t.ask(ctx, func(ctx context.Context, g guest.Agent) (err error) {
		listeners, err = g.Listeners(ctx)
		return err
	})
	return canonical(listeners), err
}

// canonical returns the listeners that make sense, at most maxListeners: ports of 1 to 65535, tcp
// or udp in lower case, no empty command.
func canonical(answer []guest.Listener) []guest.Listener {
	answer = answer[:min(len(answer), maxListeners)]
	out := make([]guest.Listener, 0, len(answer))
	for _, l := range answer {
		if l.Port <= 0 || l.Port > 65535 {
			continue
		}
		switch l.Protocol = strings.ToLower(strings.TrimSpace(cut(l.Protocol, 64))); l.Protocol {
		case "tcp", "udp":
		case "tcp6", "udp6":
			l.Protocol = l.Protocol[:3]
		default:
			continue
		}
		l.PID = max(l.PID, 0)
		l.Address = cut(l.Address, maxAddress)
		l.Process = cut(l.Process, maxProcess)
		l.Command = cut(l.Command, maxCommand)
		if strings.TrimSpace(l.Command) == "" {
			l.Command = l.Process
		}
		out = append(out, l)
	}
	return out
}

// cut returns at most n bytes of s, whole characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// hostOf returns the name by which the host finds the guest, else its address, else nothing.
func hostOf(s *vmm.Snapshot) string {
	if name := s.DNS(); name != "" {
		return name
	}
	if a := s.GuestAddress(); a.IsValid() {
		return a.String()
	}
	return ""
}

// rows returns the table. If the host does not find the guest, an endpoint names the address that
// the listener is bound to.
func rows(ls []guest.Listener, guest string, schemes map[probeKey]string) []Port {
	out := make([]Port, 0, len(ls))
	for _, l := range ls {
		host := cmp.Or(guest, l.Address)
		p := Port{
			Scheme: l.Protocol, Port: l.Port, Address: l.Address,
			PID: l.PID, Process: l.Process, Command: l.Command,
		}
		if scheme := schemes[keyOf(l)]; l.Protocol == "tcp" && scheme != "" {
			p.Scheme = scheme
		}
		p.Endpoint = endpoint(p.Scheme, net.JoinHostPort(host, strconv.Itoa(l.Port)))
		out = append(out, p)
	}
	return ordered(out)
}

// ordered sorts rows by scheme, port, pid, process and bind address. It keeps the first row of each
// scheme and endpoint.
func ordered(rows []Port) []Port {
	slices.SortStableFunc(rows, func(a, b Port) int {
		return cmp.Or(
			cmp.Compare(a.Scheme, b.Scheme), cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.PID, b.PID), cmp.Compare(a.Process, b.Process),
			cmp.Compare(a.Address, b.Address))
	})
	type same struct{ scheme, endpoint string }
	seen := make(map[same]bool, len(rows))
	return slices.DeleteFunc(rows, func(p Port) bool {
		k := same{p.Scheme, p.Endpoint}
		dup := seen[k]
		seen[k] = true
		return dup
	})
}
