//go:build profile

package main

import (
	"io"
	"log"
	"net"
	"os"
	"runtime/pprof"

	"golang.org/x/sys/unix"
)

// A daemon built with the tag profile listens on the unix socket BANGER_PROFILE. Each connection
// receives a CPU profile of the time from its start until the client closes its writing side.
// Released daemons are built without the tag: a profile shows addresses and names.
func init() {
	path := os.Getenv("BANGER_PROFILE")
	if path == "" {
		return
	}
	os.Unsetenv("BANGER_PROFILE") // the programs that the daemon starts have no profile
	unix.Umask(0o077)
	l, err := net.Listen("unix", path)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				log.Fatal(err)
			}
			serveProfile(c)
		}
	}()
}

func serveProfile(c net.Conn) {
	defer c.Close()
	if err := pprof.StartCPUProfile(c); err != nil {
		log.Print(err)
		return
	}
	_, _ = io.Copy(io.Discard, c) // a client that ends ends its profile too
	pprof.StopCPUProfile()
}
