package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// port is a virtio-serial port. While no host is connected read(2) gives 0 and poll(2)
// POLLHUP all the time, so both directions wait with an edge-triggered epoll
// (drivers/char/virtio_console.c wakes it when a host connects).
//
// That state proves nothing: it comes through another queue than the data, so the bytes
// of a new connection may be there before the news that the old one has ended. A hangup
// is therefore never told; the marker that begins each connection is what counts.
type port struct {
	fd, in, out int
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
	p := &port{fd: fd, in: -1, out: -1}
	for _, e := range []struct {
		fd     *int
		events uint32
	}{{&p.in, unix.EPOLLIN}, {&p.out, unix.EPOLLOUT}} {
		if *e.fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err == nil {
			err = unix.EpollCtl(*e.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: e.events | unix.EPOLLET, Fd: int32(fd)})
		}
		if err != nil {
			p.Close()
			return nil, os.NewSyscallError("epoll", err)
		}
	}
	return p, nil
}

// wait returns once the port's state has changed since the last wait with this epoll.
func wait(epoll int) error {
	var events [1]unix.EpollEvent
	for {
		n, err := unix.EpollWait(epoll, events[:], -1)
		if err == unix.EINTR || err == nil && n == 0 {
			continue
		}
		return os.NewSyscallError("epoll_wait", err)
	}
}

// Read implements io.Reader; it waits while no host is connected. One read(2) gives at most one buffer of the driver, a page: Read takes all that are full.
func (p *port) Read(b []byte) (int, error) {
	done := 0
	for {
		n, err := unix.Read(p.fd, b[done:])
		switch {
		case n > 0:
			done += n
			if n == os.Getpagesize() && done < len(b) {
				continue
			}
			return done, nil
		case err == unix.EINTR:
			continue
		case done > 0:
			return done, nil // an error comes again
		case err != nil && err != unix.EAGAIN:
			return 0, os.NewSyscallError("read", err)
		}
		if err := wait(p.in); err != nil {
			return 0, err
		}
	}
}

// Write implements io.Writer. What a host did not take goes to the next one, who discards it.
func (p *port) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Write(p.fd, b[done:])
		switch {
		case n > 0:
			done += n
		case err == unix.EAGAIN:
			if err := wait(p.out); err != nil {
				return done, err
			}
		case err != nil && err != unix.EINTR:
			return done, os.NewSyscallError("write", err)
		}
	}
	return done, nil
}

// Close implements io.Closer.
func (p *port) Close() error {
	for _, fd := range []int{p.in, p.out} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	return unix.Close(p.fd)
}
