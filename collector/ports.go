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
	return c.answers(e).ports.get(ctx, c, epochOf(s), c.portsMaxAge, c.portsOf(e, s))
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
		schemes := c.probeAll(probing, &c.answers(e).probed, address, ls)
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("cannot read ports of %s: %w", s.Name, err)
		}
		return &Ports{Rows: rows(ls, address, schemes), Collected: c.now()}, nil
	}
}

// askListeners gives what the agent says, made canonical and bounded.
func (c *Collector) askListeners(ctx context.Context, e *entry, s *vmm.Snapshot) ([]vmm.Listener, error) {
	var ls []vmm.Listener
	err := c.ask(ctx, e, s, func(ctx context.Context, g vmm.Guest) (err error) {
		ls, err = g.Listeners(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return canonical(ls), nil
}

// canonical copies the listeners that make sense: ports of 1 to 65535, tcp or udp in lower case, no empty command, at most maxListeners.
func canonical(in []vmm.Listener) []vmm.Listener {
	in = in[:min(len(in), maxListeners)]
	out := make([]vmm.Listener, 0, len(in))
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

// rows makes the table: sorted by scheme, port, pid, process and bind address, and of the same scheme and endpoint only the first.
// Where the guest has no address that the host reaches, an endpoint names the address that the listener is bound to.
func rows(ls []vmm.Listener, address netip.Addr, schemes map[probeKey]string) []Port {
	out := make([]Port, 0, len(ls))
	for _, l := range ls {
		host := l.Address
		if address.IsValid() {
			host = address.String()
		}
		p := Port{
			Scheme: l.Protocol, Port: l.Port, Address: l.Address, PID: l.PID, Process: l.Process, Command: l.Command,
			Endpoint: net.JoinHostPort(host, strconv.Itoa(l.Port)),
		}
		if scheme := schemes[keyOf(l)]; l.Protocol == "tcp" && scheme != "" {
			p.Scheme = scheme
			p.Endpoint = scheme + "://" + p.Endpoint + "/"
		}
		out = append(out, p)
	}
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
