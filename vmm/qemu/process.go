package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"banger/internal/host"
	"banger/vmm"

	"golang.org/x/sys/unix"
)

// process is a VMM, our child or not, with its pidfd (pidfd_open(2)).
type process struct {
	vmm.Process
	pidfd *os.File // in the runtime's poller, so that Close interrupts wait
}

// openProcess opens a living process. If start is not 0, the process must have been started then:
// a later process may have the same pid.
func openProcess(pid int, start uint64) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	p := &process{pidfd: os.NewFile(uintptr(fd), "pidfd")}
	// Read after the pidfd is open: from then on a reuse of the pid is noticed.
	began, err := startTime(pid)
	if err == nil && (start != 0 && began != start || p.gone()) {
		err = unix.ESRCH
	}
	if err != nil {
		p.pidfd.Close()
		return nil, err
	}
	p.Process = vmm.Process{PID: pid, StartTime: began}
	return p, nil
}

func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	start := host.StartTime(stat)
	if err == nil && start == 0 {
		err = errors.New("no start time in stat")
	}
	return start, err
}

// gone reports whether the process has ended; it may still be a zombie.
func (p *process) gone() bool {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	gone := false
	raw.Control(func(fd uintptr) { gone = readable(int(fd)) })
	return gone
}

func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&unix.POLLIN != 0
}

// wait returns when the process is gone, or with an error when the pidfd is closed.
func (p *process) wait() error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool { return readable(int(fd)) })
}

// reap returns the exit status, and whether the process was our child.
func (p *process) reap() (unix.WaitStatus, bool) {
	var ws unix.WaitStatus
	for {
		pid, err := unix.Wait4(p.PID, &ws, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		return ws, err == nil && pid == p.PID
	}
}

func (p *process) kill() error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var killed error
	if err := raw.Control(func(fd uintptr) {
		killed = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0)
	}); err != nil {
		return err
	}
	if killed == unix.ESRCH {
		return nil
	}
	return killed
}

// end kills the process, waits for its end until ctx ends, reaps it and closes its pidfd.
func (p *process) end(ctx context.Context) error {
	defer p.pidfd.Close()
	if err := p.kill(); err != nil {
		return fmt.Errorf("cannot kill process %d: %w", p.PID, err)
	}
	defer host.Deadline(ctx, p.pidfd.SetReadDeadline)()
	if err := p.wait(); err != nil {
		return fmt.Errorf("process %d does not end: %w", p.PID, err)
	}
	p.reap()
	return nil
}

// enterMounts moves the calling thread into the process's mount namespace.
func (p *process) enterMounts() error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var entered error
	if err := raw.Control(func(fd uintptr) {
		entered = unix.Setns(int(fd), unix.CLONE_NEWNS)
	}); err != nil {
		return err
	}
	return os.NewSyscallError("setns", entered)
}

// spawn starts argv in a session of its own, confined by c. Its output goes to out, and files
// become its descriptors from firstFD on. The caller closes the files.
func spawn(argv []string, out *os.File, files []*os.File, c cell) (*process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/bin:/bin", "LC_ALL=C"},
		Files: append([]*os.File{null, out, out}, files...),
		Sys:   &syscall.SysProcAttr{Setsid: true, Credential: c.user},
	}
	var child *os.Process
	err = host.OnOwnThread(func() (err error) {
		if err = c.enter(attr.Sys); err == nil {
			child, err = os.StartProcess(c.program, argv, attr)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	// The process may have ended already, which the caller finds out. Nobody has reaped it, so the
	// pid is still its own.
	fd, err := unix.PidfdOpen(child.Pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		child.Kill()
		child.Wait()
		return nil, fmt.Errorf("cannot open a pidfd: %w", err)
	}
	p := &process{Process: vmm.Process{PID: child.Pid}, pidfd: os.NewFile(uintptr(fd), "pidfd")}
	if p.StartTime, err = startTime(child.Pid); err != nil {
		p.end(context.Background())
		return nil, err
	}
	child.Release()
	return p, nil
}
