package fs

import (
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/vmm"
)

// changed is told of every event; the nudger may be slow, and losing a wake-up of watchers beats delaying others.
func (s *Server) changed(e vmm.Event) {
	select {
	case s.nudges <- e:
	default:
	}
}

// nudger is the goroutine that uses the daemon's own mount, and holds no lock over it.
func (s *Server) nudger() {
	defer s.work.Done()
	if err := apart(s.tellWatchers); err != nil {
		s.o.Log.Warn("inotify watchers will not be told of changes", "err", err)
	}
}

func (s *Server) tellWatchers() {
	s.nudgerTID.Store(uint32(unix.Gettid()))
	for {
		select {
		case <-s.ctx.Done():
			return
		case e := <-s.nudges:
			s.nudge(e)
		}
	}
}

func (s *Server) nudgeFile(file uint64, path string) {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}
	for _, node := range s.nodes.watchable(file) {
		s.nodes.touch(node, func() {
			// A VM that was renamed or removed since has no watchers of that name.
			_ = unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(s.o.Dir, path), times, unix.AT_SYMLINK_NOFOLLOW)
		})
	}
}

// nudge tells inotify's watchers that a file has changed: only a change made
// through the mount does (FUSE has no notification that reaches them).
func (s *Server) nudge(e vmm.Event) {
	names := map[string][]string{
		vmm.EventState:  {"state", "health", "events"},
		vmm.EventHealth: {"health", "events"},
	}[e.What]
	if names == nil {
		names = []string{"events"}
	}
	if e.What == vmm.EventImage {
		names = nil
		for i := range imageRow.files {
			if f := &imageRow.files[i]; f.watch {
				s.nudgeImage(f, e.VM)
			}
		}
	}
	for _, name := range names {
		if f := vmFile(name); f != nil {
			s.nudgeFile(nodeID(e.Serial, f.row, 0), filepath.Join("vms", e.VM, name))
		}
	}
	for _, f := range rows[0].files {
		if f.watch {
			s.nudgeFile(nodeID(0, f.row, 0), f.name)
		}
	}
}

// nudgeImage does it for a file of the image that has that name now.
func (s *Server) nudgeImage(f *file, name string) {
	for _, i := range s.o.Images.Infos() {
		if i.Name == name {
			s.nudgeFile(nodeID(imageBit|i.Number, f.row, 0), filepath.Join("images", name, f.name))
		}
	}
}

func vmFile(name string) *file {
	for i := range vmRow.files {
		if vmRow.files[i].name == name {
			return &vmRow.files[i]
		}
	}
	return nil
}
