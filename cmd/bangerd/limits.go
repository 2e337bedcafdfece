package main

import (
	"log/slog"
	"math"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/host"
)

// group returns the gid whose members may create VMs: a user's own, or root's if there is no group
// of that name.
func group(log *slog.Logger, name string, root bool) int {
	if !root {
		return os.Getgid()
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		log.Debug("only root may create VMs", "err", err)
		return 0
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0
	}
	return gid
}

// allowOther reports whether fuse.conf lets a user open a mount to others (mount.fuse3(8)).
func allowOther() bool {
	b, err := os.ReadFile("/etc/fuse.conf")
	if err != nil {
		return false
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}

// closeInherited hides inherited descriptors from the daemon's programs, above all from VMMs.
func closeInherited(log *slog.Logger) {
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		log.Warn("inherited descriptors are not closed in VMMs: this needs Linux 5.11", "err", err)
	}
}

// raiseFiles raises the limit of open files: each running VM needs a few.
func raiseFiles(log *slog.Logger) {
	most := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return
	}
	if l.Max < most.Max && unix.Setrlimit(unix.RLIMIT_NOFILE, &most) == nil {
		return
	}
	l.Cur = l.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		log.Debug("limit of open files not raised", "err", err)
	}
}

// lastToDie makes the daemon the last process that the kernel kills for want of memory. Its VMMs
// and programs have scores of their own. Only root may do that.
func lastToDie(log *slog.Logger) {
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if score, e := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && e == nil &&
		score <= host.OOMDaemon {
		return
	}
	if err := host.SetOOM(0, host.OOMDaemon); err != nil {
		log.Debug("the daemon's oom_score_adj is not lowered", "err", err)
	}
}
