package dns

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	resolvConfPath  = "/etc/resolv.conf"
	resolvConfLook  = time.Second // how often it is looked at, at most
	resolvConfBytes = 64 << 10    // of it that are read
	maxResolvers    = 3           // MAXNS of resolv.conf(5)
	dnsPort         = 53
)

// resolvConf knows the host's resolvers.
type resolvConf struct {
	path string // immutable, as is port
	port uint16 // of the resolvers

	mu      sync.Mutex
	looked  time.Time
	stamp   fileStamp
	servers []netip.AddrPort // immutable
}

// fileStamp tells whether a file was written.
type fileStamp struct {
	at   time.Time
	size int64
}

func stampOf(path string) fileStamp {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}
	}
	return fileStamp{info.ModTime(), info.Size()}
}

// resolvers gives them as they are, or were a second ago, in order.
func (r *resolvConf) resolvers() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); r.servers == nil || now.Sub(r.looked) >= resolvConfLook {
		r.looked = now
		if stamp := stampOf(r.path); r.servers == nil || stamp != r.stamp {
			r.stamp = stamp
			r.servers = r.read()
		}
	}
	return r.servers
}

// read gives the resolvers that the file names now.
func (r *resolvConf) read() []netip.AddrPort {
	b, _ := os.ReadFile(r.path) // one that cannot be read names none
	return parseResolvConf(b[:min(len(b), resolvConfBytes)], r.port)
}

// parseResolvConf returns the resolvers in order. Without any it is the host itself (resolv.conf(5)).
func parseResolvConf(b []byte, port uint16) []netip.AddrPort {
	var servers []netip.AddrPort
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Fields(l)
		if len(f) < 2 || f[0] != "nameserver" || len(servers) == maxResolvers {
			continue
		}
		if addr, err := netip.ParseAddr(f[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(addr, port))
		}
	}
	if servers == nil {
		return []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)}
	}
	return servers
}

// without gives those that are not in own.
func without(servers, own []netip.AddrPort) []netip.AddrPort {
	ours := func(s netip.AddrPort) bool { return slices.Contains(own, s) }
	return slices.DeleteFunc(slices.Clone(servers), ours)
}
