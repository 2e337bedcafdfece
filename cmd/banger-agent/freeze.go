package main

import (
	"context"
	"log"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/host"
)

// FIFREEZE and FITHAW (include/uapi/linux/fs.h): _IOWR('X', 119, int) and _IOWR('X', 120, int).
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// frozenList is the list of a freezer in a guest.
const frozenList = "/run/banger-agent.frozen"

// listEnd is between the paths of that list: no path holds it.
const listEnd = "\x00"

// freezer holds the guest's file systems still, for a bounded time.
type freezer struct {
	// list is a file in memory that holds the mount points of a freeze. A restarted agent thaws those
	// of its predecessor.
	list string

	letting sync.Mutex // held over a thaw, so that it does not undo the next freeze

	mu    sync.Mutex // guards what follows; not held over an ioctl
	turn  int        // counts freezes and thaws: an outdated freeze undoes what it still does
	held  []*os.File // frozen in this turn
	timer *time.Timer
}

// Freeze implements guest.Freezer. It returns when all file systems stand still, or with ctx. It
// passes over those that it cannot freeze.
func (g *agent) Freeze(ctx context.Context, within time.Duration) (int, error) {
	points := freezable(readFile("/proc/self/mountinfo"))
	return g.freezer.freeze(ctx, points, within)
}

// Thaw implements guest.Freezer.
func (g *agent) Thaw(context.Context) (bool, error) { return g.freezer.thaw(), nil }

func (f *freezer) freeze(ctx context.Context, points []string, within time.Duration) (int, error) {
	f.thaw() // of a host that came back
	f.mu.Lock()
	if err := os.WriteFile(f.list, []byte(strings.Join(points, listEnd)), 0o600); err != nil {
		f.mu.Unlock()
		return 0, err
	}
	f.turn++
	turn := f.turn
	// Nothing is logged while file systems stand still: the log may be on one of them.
	f.timer = time.AfterFunc(within, func() { f.expire(turn) })
	f.mu.Unlock()
	done := make(chan int, 1)
	go func() { // ends with its last ioctl, which waits for the disk
		n := 0
		for _, point := range points {
			if f.one(point, turn) {
				n++
			}
		}
		done <- n
	}()
	select {
	case n := <-done:
		return n, nil
	case <-ctx.Done():
		f.thaw()
		return 0, ctx.Err()
	}
}

// one freezes a file system, unless the turn is over.
func (f *freezer) one(point string, turn int) bool {
	f.mu.Lock()
	over := f.turn != turn
	f.mu.Unlock()
	if over {
		return false
	}
	dir, err := os.Open(point)
	if err != nil {
		return false
	}
	if unix.IoctlSetInt(int(dir.Fd()), fiFreeze, 0) != nil { // EBUSY: it is another's
		dir.Close()
		return false
	}
	f.mu.Lock()
	over = f.turn != turn
	if !over {
		f.held = append(f.held, dir)
	}
	f.mu.Unlock()
	if over {
		release(dir)
	}
	return !over
}

func release(dir *os.File) {
	unix.IoctlSetInt(int(dir.Fd()), fiThaw, 0)
	dir.Close()
}

// thaw lets all go and reports whether they stood still until now.
func (f *freezer) thaw() bool { return f.letGo(0) }

// letGo is thaw in that turn only, or in any if turn is 0.
func (f *freezer) letGo(turn int) bool {
	f.letting.Lock()
	defer f.letting.Unlock()
	f.mu.Lock()
	if turn != 0 && turn != f.turn {
		f.mu.Unlock()
		return false
	}
	f.turn++
	next, held := f.turn, f.held
	f.held = nil
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	f.mu.Unlock()
	for i := len(held) - 1; i >= 0; i-- {
		release(held[i])
	}
	f.mu.Lock()
	if f.turn == next { // else the list is a next freeze's
		os.Remove(f.list)
	}
	f.mu.Unlock()
	return len(held) > 0
}

// expire is thaw at the end of the time, unless somebody did it before.
func (f *freezer) expire(turn int) {
	if f.letGo(turn) {
		log.Print("nobody let the frozen file systems go in time: they are not frozen any more")
	}
}

// recover lets go what an agent before this one held.
func (f *freezer) recover() {
	for _, point := range strings.Split(string(readFile(f.list)), listEnd) {
		if dir, err := os.Open(point); err == nil {
			release(dir)
		}
	}
	os.Remove(f.list)
}

// freezable returns the mount points of what can be frozen, the last mounted first: one file system
// may be in a file of another.
func freezable(mountinfo []byte) []string {
	var points []string
	seen := map[string]bool{}
	for _, m := range host.Mounts(mountinfo) {
		if !strings.HasPrefix(m.Source, "/dev/") || seen[m.Source] ||
			readOnly(m.Options) || readOnly(m.VFSOptions) {
			continue
		}
		switch m.FSType {
		case "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs":
			seen[m.Source] = true
			points = append(points, m.Mountpoint)
		}
	}
	slices.Reverse(points)
	return points
}

// readOnly reports whether a mount has the option ro, which comes first.
func readOnly(options string) bool {
	first, _, _ := strings.Cut(options, ",")
	return first == "ro"
}
