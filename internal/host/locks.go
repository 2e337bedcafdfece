package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/printable"
)

// LockHolder names the processes that hold a lock on the file at path, as "process 12 (sleep)".
// It returns "" where it may not see them. The pid of /proc/locks would not do: it is that of
// the process that took the lock, which may have ended and left the descriptor to another.
func LockHolder(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	infos, _ := filepath.Glob("/proc/[0-9]*/fdinfo") // the pattern is well formed
	var all []string
	for _, dir := range infos {
		proc := filepath.Dir(dir)
		pid := filepath.Base(proc)
		if pid == strconv.Itoa(os.Getpid()) || !holdsLock(dir, st.Dev, st.Ino) {
			continue
		}
		name, _ := os.ReadFile(filepath.Join(proc, "comm"))
		program := printable.Line(strings.TrimSpace(string(name)))
		all = append(all, fmt.Sprintf("process %s (%s)", pid, program))
	}
	return strings.Join(all, ", ")
}

// Locked is a file that a process has locked.
type Locked struct {
	PID  int
	Path string // as the process sees it
}

// LockedFiles finds the files of that base name on which processes of this user hold a lock.
func LockedFiles(base string) []Locked {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is well formed
	var all []Locked
	for _, link := range links {
		path, err := os.Readlink(link)
		if err != nil || filepath.Base(path) != base {
			continue
		}
		var st, owner unix.Stat_t
		fds := filepath.Dir(link)
		proc := filepath.Dir(fds)
		info, err := os.ReadFile(filepath.Join(proc, "fdinfo", filepath.Base(link)))
		if err != nil || unix.Stat(link, &st) != nil || unix.Stat(proc, &owner) != nil {
			continue // gone
		}
		pid, err := strconv.Atoi(filepath.Base(proc))
		ours := err == nil && int(owner.Uid) == os.Geteuid()
		if ours && locks(string(info), st.Dev, st.Ino) {
			all = append(all, Locked{pid, path})
		}
	}
	return all
}

// holdsLock reports whether one of a process's descriptors holds a lock on a file.
func holdsLock(fdinfo string, dev, inode uint64) bool {
	fds, err := os.ReadDir(fdinfo)
	if err != nil {
		return false // gone, or another user's
	}
	for _, fd := range fds {
		info, err := os.ReadFile(filepath.Join(fdinfo, fd.Name()))
		if err == nil && locks(string(info), dev, inode) {
			return true
		}
	}
	return false
}

// locks reports whether a file of fdinfo has a lock on that file (proc_pid_fdinfo(5)):
// "lock: 1: FLOCK ADVISORY WRITE 359 00:13:11691 0 EOF".
func locks(info string, dev, inode uint64) bool {
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(dev), unix.Minor(dev), inode)
	for line := range strings.SplitSeq(info, "\n") {
		words := strings.Fields(line)
		if len(words) > 6 && words[0] == "lock:" && words[6] == file {
			return true
		}
	}
	return false
}
