package main

import (
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// outPipe is the reading end of a command's output. If Go's runtime polled the pipe, each write(2)
// of the command would wake it (fs/pipe.c, poll_usage). That costs an emulated guest more than the
// copying. So the runtime polls an epoll set of one, which is armed only when a read has found
// nothing (epoll(7), EPOLLONESHOT).
//
// Small pieces are gathered. Each piece that goes to the host costs an interrupt of the guest, one
// of the host and a read of the reader.
type outPipe struct {
	fd   int
	set  *os.File
	raw  syscall.RawConn
	last time.Time // of the last read's end
}

const (
	burst  = 100 * time.Millisecond // a read this soon after the last one waits for more
	gather = 2 * time.Millisecond   // for how long; a shorter wait costs more than it gathers
	room   = 128 << 10              // bytes of the pipe, so that gathering holds up no writer
)

// newOutPipe makes a pipe and gives the end for the command, too, which the caller closes.
func newOutPipe() (*outPipe, *os.File, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	_, _ = unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, room) // less will do
	theirs := os.NewFile(uintptr(p[1]), "|1")
	o := &outPipe{fd: p[0]}
	err := o.watch()
	if err != nil {
		o.Close()
		theirs.Close()
		return nil, nil, err
	}
	return o, theirs, nil
}

func (o *outPipe) watch() error {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	for _, fd := range []int{o.fd, epoll} { // the runtime does not poll a descriptor that blocks
		if err := unix.SetNonblock(fd, true); err != nil {
			unix.Close(epoll)
			return os.NewSyscallError("fcntl", err)
		}
	}
	o.set = os.NewFile(uintptr(epoll), "epoll")
	if o.raw, err = o.set.SyscallConn(); err != nil {
		return err
	}
	err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, o.fd, &unix.EpollEvent{})
	return os.NewSyscallError("epoll_ctl", err)
}

// Read implements io.Reader, for one reader.
func (o *outPipe) Read(b []byte) (n int, err error) {
	waited := false
	failed := o.raw.Read(func(set uintptr) bool {
		if waited { // what is taken note of disarms
			var events [1]unix.EpollEvent
			_, _ = unix.EpollWait(int(set), events[:], 0)
		}
		if n, err = o.read(b); err != unix.EAGAIN {
			return true
		}
		waited = true
		once := &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT}
		err = unix.EpollCtl(int(set), unix.EPOLL_CTL_MOD, o.fd, once)
		return err != nil
	})
	switch {
	case failed != nil:
		return 0, failed
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case n == 0 && len(b) > 0:
		return 0, io.EOF
	}
	if n < len(b)/2 && time.Since(o.last) < burst {
		time.Sleep(gather)
		more := 0
		if o.raw.Read(func(uintptr) bool { more, err = o.read(b[n:]); return true }) == nil && err == nil {
			n += more // nothing, the end or an error are what the next read finds again
		}
	}
	o.last = time.Now()
	return n, nil
}

// read is read(2). The caller holds the set open, and so the pipe.
func (o *outPipe) read(b []byte) (int, error) {
	for {
		n, err := unix.Read(o.fd, b)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// SetReadDeadline implements agent.ExecPipe.
func (o *outPipe) SetReadDeadline(t time.Time) error { return o.set.SetReadDeadline(t) }

// Close implements io.Closer; a read under way has ended when it returns. Again, it does nothing.
func (o *outPipe) Close() error {
	if o.set != nil && o.set.Close() != nil {
		return nil
	}
	return unix.Close(o.fd)
}
