package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"banger/internal/host"

	"golang.org/x/sys/unix"
)

// Leftover is a directory with the groups that one daemon made.
type Leftover struct {
	Instance string // of its state directory
	Path     string
}

// Leftovers finds the groups that daemons of banger, living or not, made on this host. Scopes of
// systemd are not among them: they end with their last process.
func Leftovers() []Leftover {
	info, _ := os.ReadFile("/proc/self/mountinfo") // nothing is mounted, then
	var all []Leftover
	seen := map[string]bool{}
	for _, mount := range host.CgroupMounts(info) {
		if seen[mount] {
			continue
		}
		seen[mount] = true
		_ = filepath.WalkDir(mount, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.IsDir() {
				return nil // a group that has just ended
			}
			instance, ours := strings.CutPrefix(e.Name(), basePrefix)
			if !ours || strings.HasSuffix(instance, scopeSuffix) || instance == "" {
				return nil
			}
			all = append(all, Leftover{instance, path})
			return fs.SkipDir
		})
	}
	return all
}

// Processes returns the processes in the groups.
func (l Leftover) Processes() []int {
	var pids []int
	paths, _ := filepath.Glob(filepath.Join(l.Path, "*", "cgroup.procs")) // a fixed pattern
	for _, path := range paths {
		for _, word := range words(path) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// Remove removes the groups of VMMs that have ended. It waits a moment for processes that have just
// been killed, and fails where others are left.
func (l Leftover) Remove() error {
	var err error
	for range removeTries {
		entries, _ := os.ReadDir(l.Path)
		for _, e := range entries {
			if e.IsDir() {
				_ = os.Remove(filepath.Join(l.Path, e.Name()))
			}
		}
		err = os.Remove(l.Path)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
		time.Sleep(removePause)
	}
	return err
}
