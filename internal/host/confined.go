package host

import (
	"bytes"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// Confined runs programs that read the files of strangers.
type Confined struct {
	UID, GID int // negative: the daemon's own
	Nice     int
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
		return cmd.Run()
	})
}

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
