package host

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Confined runs programs that read the files of strangers.
type Confined struct {
	UID, GID int // negative: the daemon's own
	Nice     int
	Bounds   Bounds // in force before the program's first instruction, see mayHold
}

// Run runs a program to its end. It has no groups and no capabilities, and gains none from what it
// executes: no_new_privs of prctl(2) and, where the daemon may do that, an empty bounding set. It
// dies with the daemon. It keeps cmd's namespaces and process groups.
func (c Confined) Run(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // when the thread that started it ends
	if c.UID >= 0 && c.GID >= 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.GID)}
	}
	return OnOwnThread(func() error {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl", err)
		}
		DropBounds()
		if c.Nice != 0 {
			_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), c.Nice) // of this thread only
		}
		return c.runBound(cmd)
	})
}

// runBound runs a program within its bounds. The calling thread is its own.
func (c Confined) runBound(cmd *exec.Cmd) error {
	held := mayHold()
	cmd.SysProcAttr.Ptrace = held // it stops at the end of execve(2), and its tracer is this thread
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	if held {
		// Stopped, or killed already. Wait below takes the state away.
		var info unix.Siginfo
		for {
			const states = unix.WEXITED | unix.WSTOPPED | unix.WNOWAIT
			if err := unix.Waitid(unix.P_PID, pid, &info, states, nil); err != unix.EINTR {
				break
			}
		}
	}
	err := c.Bounds.Apply(pid, c.UID, c.GID)
	if err != nil {
		_ = cmd.Process.Kill()
	}
	if held {
		_ = unix.PtraceDetach(pid) // it goes on; fails for one that was killed
	}
	ended := cmd.Wait()
	if err != nil && !errors.Is(err, unix.ESRCH) { // it may have ended by itself
		return err
	}
	return ended
}

// mayHold reports whether a program can be stopped before its first instruction. Some containers
// forbid ptrace(2). There the bounds are in force some microseconds later.
var mayHold = sync.OnceValue(func() bool {
	return OnOwnThread(func() error {
		p, err := os.StartProcess("/proc/self/exe", []string{"held"}, &os.ProcAttr{
			Sys: &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}})
		if err != nil {
			return err
		}
		_ = p.Kill() // before it runs
		_, err = p.Wait()
		return err
	}) == nil
})

// DropBounds empties the bounding and the ambient set of the calling thread, which OnOwnThread
// made, as far as it may: a daemon without CAP_SETPCAP has little that could be gained.
func DropBounds() {
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for c := uintptr(0); unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) == nil; c++ {
	}
}

// Beginning keeps the first bytes that a program writes to it, so many at most, and drops the rest.
type Beginning struct {
	bytes.Buffer
	Most int
}

// Write implements io.Writer. It never fails, so that the program goes on.
func (b *Beginning) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), max(0, b.Most-b.Len()))])
	return len(p), nil
}
