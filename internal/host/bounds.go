package host

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// What the kernel prefers to kill when the host has no memory (oom_score_adj of proc(5)). The
// daemon is the last and a program that it can run again the first.
const (
	OOMDaemon  = -900
	OOMVMM     = 300
	OOMProgram = 900
)

// Bounds are limits of a process (setrlimit(2)). It never dumps core.
type Bounds struct {
	FileSize  uint64 // bytes; 0: any
	Files     uint64 // open ones; 0: any
	Processes uint64 // and threads, of the process's user; 0: any
	OOM       int    // oom_score_adj
}

// Program returns the bounds of a program that reads the files of a stranger and writes none longer
// than size, as the user uid; negative for the daemon's own.
func Program(uid int, size uint64) Bounds {
	b := Bounds{FileSize: size, Files: 256, OOM: OOMProgram}
	if uid >= 0 { // otherwise all of the daemon's processes would count
		b.Processes = 128
	}
	return b
}

// Apply sets the bounds of a process of the user uid and the group gid, both negative for the
// daemon's own. A limit that is lower already stays. Without CAP_SYS_RESOURCE the process may raise
// FileSize again, because the daemon itself could not: see Widen.
func (b Bounds) Apply(pid, uid, gid int) error {
	limits := []bound{{which: unix.RLIMIT_CORE, strict: true}}
	for _, l := range []bound{
		{unix.RLIMIT_FSIZE, b.FileSize, mayRaise()},
		{unix.RLIMIT_NOFILE, b.Files, true},
		{unix.RLIMIT_NPROC, b.Processes, true},
	} {
		if l.most != 0 {
			limits = append(limits, l)
		}
	}
	if err := asUser(uid, gid, func() error { return lower(pid, limits) }); err != nil {
		return fmt.Errorf("cannot limit process %d: %w", pid, err)
	}
	return SetOOM(pid, b.OOM)
}

// bound is one limit of setrlimit(2).
type bound struct {
	which  int
	most   uint64
	strict bool // the process itself cannot raise it
}

// lower sets those limits of a process that are higher.
func lower(pid int, limits []bound) error {
	for _, l := range limits {
		var now unix.Rlimit
		if err := unix.Prlimit(pid, l.which, nil, &now); err != nil {
			return os.NewSyscallError("prlimit", err)
		}
		now.Cur = min(now.Cur, l.most)
		if l.strict {
			now.Max = min(now.Max, l.most)
		}
		if err := unix.Prlimit(pid, l.which, &now, nil); err != nil {
			return os.NewSyscallError("prlimit", err)
		}
	}
	return nil
}

// Widen raises RLIMIT_FSIZE of a process to that many bytes. A higher limit stays.
func Widen(pid, uid, gid int, size uint64) error {
	err := asUser(uid, gid, func() error {
		var now unix.Rlimit
		if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, nil, &now); err != nil || now.Cur >= size {
			return err
		}
		now.Cur, now.Max = size, max(now.Max, size)
		return unix.Prlimit(pid, unix.RLIMIT_FSIZE, &now, nil)
	})
	if err != nil {
		return fmt.Errorf("cannot raise the limit of the files of process %d: %w", pid, err)
	}
	return nil
}

// mayRaise reports whether this process may raise the limits of others.
func mayRaise() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if unix.Capget(&head, &caps[0]) != nil {
		return false
	}
	return caps[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// asUser calls f, and where the kernel refuses that (EPERM) again on a thread whose real uid and
// gid are those: prlimit(2) asks for these or for CAP_SYS_RESOURCE, which a container may lack. The
// thread keeps its effective uid and its capabilities.
func asUser(uid, gid int, f func() error) error {
	err := f()
	if !errors.Is(err, unix.EPERM) || uid < 0 || gid < 0 {
		return err
	}
	return OnOwnThread(func() error {
		const same = ^uintptr(0)
		// Of this thread only, unlike the functions of package syscall.
		_, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), same, same)
		if e == 0 {
			_, _, e = unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), same, same)
		}
		if e != 0 {
			return e
		}
		return f()
	})
}

// SetOOM sets oom_score_adj of a process. 0 is this process.
func SetOOM(pid, score int) error {
	who := "self"
	if pid != 0 {
		who = strconv.Itoa(pid)
	}
	path := "/proc/" + who + "/oom_score_adj"
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(score))
	return errors.Join(err, f.Close())
}
