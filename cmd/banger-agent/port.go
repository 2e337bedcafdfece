package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"banger/vmm/agent"

	"golang.org/x/sys/unix"
)

// port is a virtio-serial port. While no host is connected read(2) gives 0 and poll(2)
// POLLHUP all the time, so both directions wait with an edge-triggered epoll
// (drivers/char/virtio_console.c wakes it when a host connects).
type port struct {
	fd, in, out int
	hungUp      bool
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
	p := &port{fd: fd, in: -1, out: -1, hungUp: true}
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

func wait(epoll int) (uint32, error) {
	var events [1]unix.EpollEvent
	for {
		n, err := unix.EpollWait(epoll, events[:], -1)
		if err == unix.EINTR || err == nil && n == 0 {
			continue
		}
		return events[0].Events, err
	}
}

// Read implements io.Reader as agent.ServePort wants it: io.EOF once for each time that the host goes.
func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(p.fd, b)
		switch {
		case n > 0:
			p.hungUp = false
			return n, nil
		case err == unix.EINTR:
			continue
		case err == nil && !p.hungUp:
			p.hungUp = true
			return 0, io.EOF
		case err != nil && err != unix.EAGAIN:
			return 0, os.NewSyscallError("read", err)
		}
		if _, err := wait(p.in); err != nil {
			return 0, err
		}
	}
}

// Write implements io.Writer; agent.ErrHostGone when the host goes meanwhile.
func (p *port) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Write(p.fd, b[done:])
		switch {
		case n > 0:
			done += n
		case err == unix.EAGAIN:
			events, err := wait(p.out)
			if err != nil {
				return done, err
			}
			if events&unix.EPOLLHUP != 0 {
				return done, agent.ErrHostGone
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
