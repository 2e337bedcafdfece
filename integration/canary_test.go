package integration

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// elsewherePort is the first of the host's eight ports that the test listens on; see
// testdata/hostile.
const elsewherePort = 8090

// watchNeighbor reads another VM's files all the time. The function that it returns stops that and
// returns the longest time of a read.
func watchNeighbor(t *testing.T, d *daemon) func() time.Duration {
	stop, stopped := make(chan struct{}), make(chan time.Duration, 1)
	go func() {
		var slowest time.Duration
		defer func() { stopped <- slowest }()
		for {
			for _, name := range []string{"state", "stats", "ports", "health", "config"} {
				slowest = max(slowest, took(func() {
					if _, err := read(d.path("neighbor", name)); err != nil {
						t.Errorf("meanwhile: %v", err)
					}
				}))
			}
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	result := sync.OnceValue(func() time.Duration {
		close(stop)
		return <-stopped
	})
	t.Cleanup(func() { result() })
	return result
}

// canary listens on all addresses of the host, the bridge's among them. A guest tries to make the
// daemon connect there.
type canary struct{ seen atomic.Int32 }

func newCanary(t *testing.T) *canary {
	c := new(canary)
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for port := elsewherePort; port < elsewherePort+8; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		must(t, err)
		t.Cleanup(func() { l.Close() })
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				conn, err := l.Accept()
				if err != nil {
					return // closed
				}
				c.seen.Add(1)
				conn.Close()
			}
		}()
	}
	return c
}

func (c *canary) connections() int { return int(c.seen.Load()) }

// check proves that the canary sees connections through the loopback and through the bridge.
func (c *canary) check(t *testing.T, d *daemon) {
	t.Helper()
	bridge, err := net.InterfaceByName(d.bridge)
	must(t, err)
	addresses, err := bridge.Addrs()
	if err != nil || len(addresses) == 0 {
		t.Fatalf("the bridge has no address: %v", err)
	}
	gateway := netip.MustParsePrefix(addresses[0].String()).Addr()
	for i, address := range []string{"127.0.0.1", gateway.String()} {
		conn, err := net.Dial("tcp", net.JoinHostPort(address, strconv.Itoa(elsewherePort+1)))
		must(t, err)
		conn.Close()
		end := time.Now().Add(5 * time.Second)
		for ; c.connections() <= i; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the listener does not see a connection to %s", address)
			}
		}
	}
}
