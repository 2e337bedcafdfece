package collector

import (
	"cmp"
	"context"
	"fmt"
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

// Ports: see Stats. vmm.ErrNoAgent when the machine has no channel to an agent.
func (c *Collector) Ports(ctx context.Context, v *vmm.VM) (*Ports, error) { return c.portsNow(ctx, v) }

func (c *Collector) portsNow(ctx context.Context, v subject) (*Ports, error) {
	e, err := c.entry(v)
	if err != nil {
		return nil, err
	}
	s := v.Snapshot()
	if s.State != vmm.Running {
		return nil, fmt.Errorf("cannot read ports of %s, it is %s: %w", s.Name, s.State, vmm.ErrNotRunning)
	}
	c.touch(e)
	p, err := c.answers(e).ports.get(ctx, c, epochOf(s), c.portsMaxAge, c.portsOf(e, s))
	if err != nil || s.Config.Publish == "" {
		return p, err
	}
	// What is published is known here and now: the guest is not asked again for it.
	return &Ports{Collected: p.Collected, Rows: published(p.Rows, s.Config.Publications(), s.GuestAddress().IsValid())}, nil
}

// published adds a row for each published socket that leads to a port of rows. Where the guest itself cannot be reached it takes the row's place.
func published(in []Port, all []vmm.Publication, reachable bool) []Port {
	out := make([]Port, 0, len(in)+len(all))
	for _, row := range in {
		protocol := row.Scheme
		if protocol != "udp" {
			protocol = "tcp"
		}
		led := false
		bind, _ := netip.ParseAddr(row.Address)
		for _, p := range all {
			if p.Protocol != protocol || int(p.Guest) != row.Port || bind.IsLoopback() {
				continue
			}
			led = true
			q := row
			q.Endpoint = endpoint(row.Scheme, p.Near().String())
			out = append(out, q)
		}
		if reachable || !led {
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

// portsOf asks the agent for its listeners and probes those that may speak HTTP.
func (c *Collector) portsOf(e *entry, s *vmm.Snapshot) func(context.Context) (*Ports, error) {
	return func(ctx context.Context) (*Ports, error) {
		begun := time.Now()
		ls, err := c.askListeners(ctx, e, s)
		if err != nil {
			return nil, err
		}
		// What is left of the guest's time, and enough for one port's probes after a slow answer.
		probing, cancel := context.WithTimeout(ctx, max(c.guestTimeout-time.Since(begun), probeBudget))
		defer cancel()
		address := s.GuestAddress()
		schemes := c.probeAll(probing, &c.answers(e).probed, address, s.Config.Publications(), ls)
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("cannot read ports of %s: %w", s.Name, err)
		}
		return &Ports{Rows: rows(ls, hostOf(s), schemes), Collected: c.now()}, nil
	}
}

// askListeners gives what the agent says, made canonical and bounded.
func (c *Collector) askListeners(ctx context.Context, e *entry, s *vmm.Snapshot) ([]guest.Listener, error) {
	var ls []guest.Listener
	err := c.ask(ctx, e, s, func(ctx context.Context, g guest.Agent) (err error) {
		ls, err = g.Listeners(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return canonical(ls), nil
}

// canonical copies the listeners that make sense: ports of 1 to 65535, tcp or udp in lower case, no empty command, at most maxListeners.
func canonical(in []guest.Listener) []guest.Listener {
	in = in[:min(len(in), maxListeners)]
	out := make([]guest.Listener, 0, len(in))
	for _, l := range in {
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

// cut shortens s to at most n bytes, not within a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// hostOf is how the host finds the guest: by name, else by address; empty if it does not.
func hostOf(s *vmm.Snapshot) string {
	if name := s.DNS(); name != "" {
		return name
	}
	if a := s.GuestAddress(); a.IsValid() {
		return a.String()
	}
	return ""
}

// rows makes the table: sorted by scheme, port, pid, process and bind address, and of the same scheme and endpoint only the first.
// Where the host finds the guest nowhere, an endpoint names the address that the listener is bound to.
func rows(ls []guest.Listener, guest string, schemes map[probeKey]string) []Port {
	out := make([]Port, 0, len(ls))
	for _, l := range ls {
		host := cmp.Or(guest, l.Address)
		p := Port{
			Scheme: l.Protocol, Port: l.Port, Address: l.Address, PID: l.PID, Process: l.Process, Command: l.Command,
		}
		if scheme := schemes[keyOf(l)]; l.Protocol == "tcp" && scheme != "" {
			p.Scheme = scheme
		}
		p.Endpoint = endpoint(p.Scheme, net.JoinHostPort(host, strconv.Itoa(l.Port)))
		out = append(out, p)
	}
	return ordered(out)
}

// ordered sorts rows and drops those whose scheme and endpoint are an earlier one's.
func ordered(out []Port) []Port {
	slices.SortStableFunc(out, func(a, b Port) int {
		return cmp.Or(
			cmp.Compare(a.Scheme, b.Scheme), cmp.Compare(a.Port, b.Port), cmp.Compare(a.PID, b.PID),
			cmp.Compare(a.Process, b.Process), cmp.Compare(a.Address, b.Address))
	})
	type same struct{ scheme, endpoint string }
	seen := make(map[same]bool, len(out))
	return slices.DeleteFunc(out, func(p Port) bool {
		k := same{p.Scheme, p.Endpoint}
		dup := seen[k]
		seen[k] = true
		return dup
	})
}
