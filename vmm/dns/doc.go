// Package dns gives VMs names: NAME.vm.
//
// Server answers guests and the host on the bridge's addresses. For A, AAAA and PTR of running VMs it
// asks Names alone. Other names below the zone `vm` are NXDOMAIN. All else goes to the host's
// resolvers, and nothing is cached. Server has one goroutine for each UDP socket and TCP listener, and
// one for each connection and each query that waits for a resolver. All of these are bounded, for each
// source as well.
//
// Host makes the host itself resolve the names: through systemd-resolved where that runs, and through
// a block in a hosts file where the configuration names one. It also finds out whether the host does.
// It has one goroutine.
//
// Package github.com/miekg/dns parses messages. This package runs no program.
package dns
