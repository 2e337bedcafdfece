package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"banger/vmm"

	"golang.org/x/sys/unix"
)

// process is a VMM, our child or not, held by its pidfd (pidfd_open(2)).
type process struct {
	vmm.Process
	pidfd *os.File // in the runtime's poller, so that Close ends a wait
}

// openProcess gets hold of a living process. With a start time that is not 0,
// it must be that process and not a later one with its pid.
func openProcess(pid int, start uint64) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	p := &process{pidfd: os.NewFile(uintptr(fd), "pidfd")}
	// Read after the pidfd is held: from now on the pid is not given away unseen.
	state, began, err := readStat(pid)
	if err == nil && (state == 'Z' || state == 'X' || start != 0 && began != start || p.gone()) {
		err = unix.ESRCH
	}
	if err != nil {
		p.pidfd.Close()
		return nil, err
	}
	p.Process = vmm.Process{PID: pid, StartTime: began}
	return p, nil
}

func readStat(pid int) (state byte, start uint64, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	return parseStat(b)
}

// parseStat gives fields 3 and 22 of /proc/PID/stat (proc(5)). Field 2 may
// hold spaces and parentheses.
func parseStat(b []byte) (state byte, start uint64, err error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, 0, errors.New("no command in stat")
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 || len(f[0]) != 1 {
		return 0, 0, errors.New("stat is too short")
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return f[0][0], start, err
}

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

// wait returns when the process is gone, or with an error when the pidfd was closed.
func (p *process) wait() error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool { return readable(int(fd)) })
}

// reap takes the exit status if the process was our child.
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

// end kills the process, waits for its end (until ctx ends), reaps it and lets go of it.
func (p *process) end(ctx context.Context) error {
	defer p.pidfd.Close()
	if err := p.kill(); err != nil {
		return fmt.Errorf("cannot kill process %d: %w", p.PID, err)
	}
	defer context.AfterFunc(ctx, func() { p.pidfd.SetReadDeadline(time.Unix(1, 0)) })()
	if err := p.wait(); err != nil {
		return fmt.Errorf("process %d does not end: %w", p.PID, err)
	}
	p.reap()
	return nil
}

// spawn starts argv in a session of its own, with files as its descriptors
// from firstFD on and out as its output. The caller closes the files.
func spawn(argv []string, out *os.File, files []*os.File, cred *syscall.Credential) (*process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	child, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/bin:/bin", "LC_ALL=C"},
		Files: append([]*os.File{null, out, out}, files...),
		Sys:   &syscall.SysProcAttr{Setsid: true, Credential: cred},
	})
	if err != nil {
		return nil, err
	}
	// It may be gone already, which is for the caller to find out: until
	// somebody reaps it, its pid is its own and its pidfd opens.
	fd, err := unix.PidfdOpen(child.Pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		child.Kill()
		child.Wait()
		return nil, fmt.Errorf("cannot open a pidfd: %w", err)
	}
	p := &process{Process: vmm.Process{PID: child.Pid}, pidfd: os.NewFile(uintptr(fd), "pidfd")}
	if _, p.StartTime, err = readStat(child.Pid); err != nil {
		p.end(context.Background())
		return nil, err
	}
	child.Release()
	return p, nil
}

// noReason matches lines of a VM's log that never say why its VMM ended: banger's own, and QEMU's
// notice that it waits for its monitor.
var noReason = regexp.MustCompile(`^((\d{4}-\S+Z )?banger|\S+: info): `)

// lastLine gives the last line that the VMM wrote to f after offset from, at most 512 bytes of it.
func lastLine(f *os.File, from int64) string {
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	from = max(from, info.Size()-4096)
	b, err := io.ReadAll(io.NewSectionReader(f, from, info.Size()-from))
	if err != nil {
		return ""
	}
	line := ""
	for _, l := range strings.Split(string(b), "\n") {
		if l = strings.TrimSpace(l); l != "" && !noReason.MatchString(l) {
			line = l
		}
	}
	if len(line) > 512 {
		line = line[:512]
	}
	return line
}
