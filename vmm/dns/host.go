package dns

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	nsswitchPath = "/etc/nsswitch.conf"
	lookEvery    = 3 * time.Second // at the files that say whom the host asks
	tryEvery     = time.Minute     // between checks of the host's resolvers
	probeTime    = 2 * time.Second // for one of the host's resolvers
	hostsPause   = 100 * time.Millisecond
)

// HostOptions of a Host.
type HostOptions struct {
	Server    *Server       // nil where none answers
	Bridge    string        // the interface of the guests
	HostsFile string        // in which a block of names is kept; empty for none
	Lines     func() []byte // of that block; does not block
	Resolves  func(bool)    // told when the host begins to find the names, and when it ceases to
	Log       *slog.Logger
}

// Host makes the host find the names of VMs, if it can, and knows whether the host does.
type Host struct {
	o       HostOptions
	changed chan struct{} // of one: the names may have
	cancel  context.CancelFunc
	done    chan struct{} // closed when run has ended

	// Until then run's own.
	resolved resolved
	resolves bool
	failures [2]string // of the hosts file and systemd-resolved, as logged last
}

// Follow begins. The caller closes the Host.
func Follow(o HostOptions) *Host {
	ctx, cancel := context.WithCancel(context.Background())
	h := &Host{o: o, changed: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{})}
	go h.run(ctx)
	return h
}

// Changed says that names may have come or gone; it does not block.
func (h *Host) Changed() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// Close undoes the registration with systemd-resolved and waits for the goroutine. The hosts file
// keeps the names of VMs that run on.
func (h *Host) Close() error {
	h.cancel()
	<-h.done
	h.writeHosts()
	return h.resolved.unregister(context.Background())
}

func (h *Host) run(ctx context.Context) {
	defer close(h.done)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var tried time.Time
	var stamps [2]fileStamp
	written := h.writeHosts()
	for {
		now := h.stamps()
		if now != stamps || time.Since(tried) >= tryEvery {
			stamps, tried = now, time.Now()
			asks := h.asks(ctx)
			if ctx.Err() != nil {
				return
			}
			h.tell(asks || written)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		case <-h.changed:
			if h.o.HostsFile == "" {
				continue
			}
			if w := h.writeHosts(); w != written {
				written, tried = w, time.Time{}
			}
			select { // boots side by side are written together
			case <-time.After(hostsPause):
			case <-ctx.Done():
				return
			}
		}
	}
}

// stamps tell whether the files that say whom the host asks were written.
func (h *Host) stamps() (s [2]fileStamp) {
	if h.o.Server != nil {
		s = [2]fileStamp{stampOf(h.o.Server.o.ResolvConf), stampOf(nsswitchPath)}
	}
	return s
}

// tell passes a change on.
func (h *Host) tell(resolves bool) {
	if resolves == h.resolves {
		return
	}
	h.resolves = resolves
	if resolves {
		h.o.Log.Info("the host finds the names of VMs")
	} else {
		h.o.Log.Warn("the host does not find the names of VMs any more")
	}
	h.o.Resolves(resolves)
}

// writeHosts reports whether the names are in the hosts file.
func (h *Host) writeHosts() bool {
	if h.o.HostsFile == "" {
		return false
	}
	err := WriteHosts(h.o.HostsFile, h.o.Bridge, h.o.Lines())
	h.failed(0, err)
	return err == nil
}

// failed logs an error that is not the one before of the same kind.
func (h *Host) failed(kind int, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != h.failures[kind] {
		h.o.Log.Warn("the host may not find the names of VMs", "err", err)
	}
	h.failures[kind] = text
}

// asks reports whether the host's programs ask the Server for the names, by resolv.conf(5) or through
// nss-resolve(8).
func (h *Host) asks(ctx context.Context) bool {
	if h.o.Server == nil {
		return false
	}
	if h.register(ctx) {
		b, _ := os.ReadFile(nsswitchPath) // without one nss-resolve is not used
		if usesResolve(string(b)) {
			return true
		}
	}
	return h.o.Server.found(ctx)
}

// register reports whether systemd-resolved knows of the names.
func (h *Host) register(ctx context.Context) bool {
	link, err := net.InterfaceByName(h.o.Bridge)
	if err != nil {
		return false // somebody removed it, and the next tap makes it again
	}
	zones := []string{zoneName}
	for _, p := range h.o.Server.zone.prefixes {
		zones = append(zones, reverseZones(p)...)
	}
	knew := h.resolved
	err = h.resolved.register(ctx, link.Index, h.o.Server.Addresses(), zones)
	if errors.Is(err, errNoResolved) {
		h.o.Log.Debug("names are not registered", "err", err)
		err = nil
	}
	h.failed(1, err)
	if h.resolved.told() && h.resolved != knew {
		h.o.Log.Info("names registered with systemd-resolved", "bridge", h.o.Bridge)
	}
	return h.resolved.told()
}

// usesResolve reports whether nsswitch.conf(5) has nss-resolve find hosts.
func usesResolve(nsswitch string) bool {
	for _, l := range strings.Split(nsswitch, "\n") {
		if f := strings.Fields(l); len(f) > 0 && f[0] == "hosts:" {
			return slices.Contains(f, "resolve")
		}
	}
	return false
}

// found asks the host's resolvers, as its programs do, for a name that only this server knows, and
// only now. The first answer decides.
func (s *Server) found(ctx context.Context) bool {
	var b [8]byte
	_, _ = rand.Read(b[:]) // fails nowhere that Go runs
	label := "_" + hex.EncodeToString(b[:])
	s.canary.Store(&label)
	defer s.canary.Store(nil)
	m := new(dns.Msg)
	m.SetQuestion(label+"."+zoneName, dns.TypeA)
	for _, resolver := range s.forward.conf.read() {
		one, cancel := context.WithTimeout(ctx, probeTime)
		reply, err := exchange(one, "udp", resolver, m)
		cancel()
		if err != nil {
			continue
		}
		return slices.ContainsFunc(reply.Answer, func(rr dns.RR) bool {
			a, ok := rr.(*dns.A)
			if !ok {
				return false
			}
			addr, _ := netip.AddrFromSlice(a.A)
			return addr.Unmap() == s.own[0].Addr()
		})
	}
	return false
}
