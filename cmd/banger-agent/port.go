package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// port is a virtio-serial port. While no host is connected read(2) gives 0 and poll(2)
// POLLHUP all the time, so both directions wait for a change, by the runtime's poller, which is
// edge-triggered (drivers/char/virtio_console.c wakes it when a host connects).
//
// That state proves nothing: it comes through another queue than the data, so the bytes
// of a new connection may be there before the news that the old one has ended. A hangup
// is therefore never told; the marker that begins each connection is what counts.
type port struct {
	*os.File
	raw syscall.RawConn
}

// findPort gives the device of the port of that name, "" if there is none.
func findPort(sys, dev, name string) string {
	names, _ := filepath.Glob(filepath.Join(sys, "class/virtio-ports/*/name"))
	for _, f := range names {
		if strings.TrimSpace(string(readFile(f))) == name {
			return filepath.Join(dev, filepath.Base(filepath.Dir(f)))
		}
	}
	return ""
}

func openPort(path string) (*port, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &port{f, raw}, nil
}

// Read implements io.Reader. It waits while no host is connected. One read(2) returns at most one
// buffer of the driver, a page: Read returns all full ones.
func (p *port) Read(b []byte) (int, error) {
	done := 0
	var failed error
	err := p.raw.Read(func(fd uintptr) bool {
		for done < len(b) {
			n, err := unix.Read(int(fd), b[done:])
			switch {
			case n > 0:
				if done += n; n != os.Getpagesize() {
					return true
				}
			case err == unix.EINTR:
			case err != nil && err != unix.EAGAIN && done == 0:
				failed = os.NewSyscallError("read", err)
				return true
			default:
				return done > 0 // an error comes again
			}
		}
		return true
	})
	return done, cmp.Or(failed, err)
}

// Write implements io.Writer. What a host did not take goes to the next one, who discards it.
func (p *port) Write(b []byte) (int, error) {
	done := 0
	var failed error
	err := p.raw.Write(func(fd uintptr) bool {
		for done < len(b) {
			n, err := unix.Write(int(fd), b[done:])
			switch {
			case n > 0:
				done += n
			case err == unix.EAGAIN:
				return false
			case err != nil && err != unix.EINTR:
				failed = os.NewSyscallError("write", err)
				return true
			}
		}
		return true
	})
	return done, cmp.Or(failed, err)
}
