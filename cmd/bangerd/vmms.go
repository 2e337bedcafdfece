package main

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A QEMU of root's daemon has its own network and an empty root. What it inherited from its daemon
// shows where it belongs.

// isHere reports whether a process belongs to a daemon in this network namespace. It is in it, or
// has one of its Unix sockets open.
func isHere(proc, dir string, sockets map[string]bool) bool {
	ours, err := os.Readlink(filepath.Join(proc, "self/ns/net"))
	theirs, err2 := os.Readlink(filepath.Join(dir, "ns/net"))
	if err != nil || err2 != nil || ours == theirs {
		return true
	}
	links, _ := filepath.Glob(filepath.Join(dir, "fd/*")) // the pattern is well formed
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && sockets[target] {
			return true
		}
	}
	return false
}

// unixSockets returns the Unix sockets of this network namespace, as links in /proc/PID/fd name
// them (proc_net(5)).
func unixSockets(proc string) map[string]bool {
	const column = 6 // of the inode
	all := map[string]bool{}
	text, _ := os.ReadFile(filepath.Join(proc, "self/net/unix")) // without it there are none
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > column {
			all["socket:["+words[column]+"]"] = true
		}
	}
	return all
}

// hasConsole reports whether a process has the file open that path leads to, or that it led to
// before it was removed.
func hasConsole(dir, path string) bool {
	var want unix.Stat_t
	exists := unix.Stat(path, &want) == nil
	links, _ := filepath.Glob(filepath.Join(dir, "fd/*")) // the pattern is well formed
	for _, link := range links {
		var st unix.Stat_t
		if unix.Stat(link, &st) != nil {
			continue
		}
		if exists && st.Dev == want.Dev && st.Ino == want.Ino {
			return true
		}
		if target, err := os.Readlink(link); err == nil && !exists && st.Nlink == 0 &&
			target == path+" (deleted)" {
			return true
		}
	}
	return false
}
