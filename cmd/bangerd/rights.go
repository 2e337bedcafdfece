package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/host"
)

// kept are the capabilities (capabilities(7)) that root's daemon and its programs use.
// mmdebstrap(1) runs as root: packages' scripts own files and change users.
var kept = []struct {
	number uint
	name   string
}{
	{unix.CAP_CHOWN, "chown"},                       // disks and trees of images
	{unix.CAP_DAC_OVERRIDE, "dac_override"},         // of disks that are a VM's user's
	{unix.CAP_FOWNER, "fowner"},                     // the same
	{unix.CAP_FSETID, "fsetid"},                     // mmdebstrap: setgid files and directories
	{unix.CAP_KILL, "kill"},                         // VMMs and jobs
	{unix.CAP_SETGID, "setgid"},                     // VMMs and jobs
	{unix.CAP_SETUID, "setuid"},                     // the same
	{unix.CAP_SETPCAP, "setpcap"},                   // to take capabilities from VMMs and jobs
	{unix.CAP_NET_BIND_SERVICE, "net_bind_service"}, // DNS, and ports that are published
	{unix.CAP_NET_ADMIN, "net_admin"},               // bridge, taps, nftables
	{unix.CAP_SYS_CHROOT, "sys_chroot"},             // to enter a mount namespace; mmdebstrap
	{unix.CAP_SYS_PTRACE, "sys_ptrace"},             // descriptors, root and directory in /proc/PID
	{unix.CAP_SYS_ADMIN, "sys_admin"},               // the mount, namespaces
	{unix.CAP_SYS_RESOURCE, "sys_resource"},         // limits of VMMs and of the daemon
	{unix.CAP_MKNOD, "mknod"},                       // mmdebstrap: /dev of an image
	{unix.CAP_AUDIT_WRITE, "audit_write"},           // mmdebstrap: PAM in packages' scripts
	{unix.CAP_SETFCAP, "setfcap"},                   // mmdebstrap: capabilities of files
}

// rights are what a process may do beyond what its uid may.
type rights struct {
	permitted uint64 // a bit for each capability
	noNew     bool   // no_new_privs of prctl(2)
}

// presentRights returns those of the calling thread.
func presentRights() (r rights, err error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return r, os.NewSyscallError("capget", err)
	}
	set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil {
		return r, os.NewSyscallError("prctl", err)
	}
	return rights{uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted), set == 1}, nil
}

func keptSet() (all uint64) {
	for _, c := range kept {
		all |= 1 << c.number
	}
	return all
}

// String names the capabilities as capabilities(7) does, without cap_ in front.
func (r rights) String() string {
	var names []string
	for _, c := range kept {
		if r.permitted&(1<<c.number) != 0 {
			names = append(names, c.name)
		}
	}
	if more := r.permitted &^ keptSet(); more != 0 {
		names = append(names, fmt.Sprintf("%#x", more))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ",")
}

// giveUpRights makes root's daemon run without the capabilities that it does not use. It executes
// the daemon's program anew, in the same process: so all threads have the same rights, those of the
// runtime too. It returns when there is nothing left to give up, and after an error.
//
// An ordinary user's daemon has none, and needs fusermount3(1) and newuidmap(1), which are setuid:
// for it no_new_privs cannot be set.
func giveUpRights() error {
	if os.Getuid() != 0 {
		return nil
	}
	now, err := presentRights()
	if err != nil || now.noNew && now.permitted&^keptSet() == 0 {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	return host.OnOwnThread(func() error {
		if err := dropTo(now.permitted & keptSet()); err != nil {
			return err
		}
		return fmt.Errorf("cannot execute %s: %w", program,
			syscall.Exec(program, os.Args, os.Environ()))
	})
}

// dropTo leaves the calling thread, which OnOwnThread made, these capabilities. What it executes
// has no others, also as root.
func dropTo(set uint64) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for c := uint(0); c < 64; c++ {
		if set&(1<<c) != 0 {
			continue
		}
		// It fails after the kernel's last one, and without setpcap: no_new_privs does then.
		if unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0) != nil {
			break
		}
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	low, high := uint32(set), uint32(set>>32)
	data := [2]unix.CapUserData{
		{Effective: low, Permitted: low}, {Effective: high, Permitted: high},
	}
	return os.NewSyscallError("capset", unix.Capset(&head, &data[0]))
}

// logRights says what the daemon runs with.
func logRights(log *slog.Logger) {
	r, err := presentRights()
	if err != nil {
		log.Warn("the daemon's rights are unknown", "err", err)
		return
	}
	log.Info("rights", "uid", os.Getuid(), "capabilities", r.String(), "no_new_privs", r.noNew)
}
