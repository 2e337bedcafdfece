// Package dns gives VMs names: NAME.vm.
//
// Server answers guests and the host on the bridge's addresses: A, AAAA and PTR of running VMs by itself, for which Names is asked
// and nobody else, and everything below the zone `vm` that is no VM's with NXDOMAIN; all else goes to the host's resolvers. It has one goroutine
// for each UDP socket and TCP listener, and one for each connection and each query that waits for a resolver; all of these are bounded, by source as
// well. Nothing is cached.
//
// Host makes the host itself resolve the names, through systemd-resolved where that runs and through a block in a hosts file where that is
// wished, and finds out whether it does. It has one goroutine.
//
// What the package does not parse itself, github.com/miekg/dns does. It runs no program.
package dns
