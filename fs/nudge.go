package fs

import (
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/vmm"
)

// changed passes an event on to the nudger. A slow nudger loses events rather than delay others.
func (s *Server) changed(e vmm.Event) {
	select {
	case s.nudges <- e:
	default:
	}
}

// nudger is the goroutine that uses the daemon's own mount. It holds no lock over that.
func (s *Server) nudger() {
	err := apart(func() {
		s.nudgerTID.Store(uint32(unix.Gettid()))
		for {
			select {
			case <-s.ctx.Done():
				return
			case e := <-s.nudges:
				s.nudge(e)
			}
		}
	})
	if err != nil {
		s.o.Log.Warn("inotify watchers do not learn of changes", "err", err)
	}
}

// nudge wakes the inotify watchers of the files that an event changes. Only a change through the
// mount does: FUSE has no notification that reaches them.
func (s *Server) nudge(e vmm.Event) {
	serial := e.Serial
	if e.What == vmm.EventImage {
		serial = s.imageSerial(e.VM)
	}
	for _, f := range watched {
		switch {
		case !f.watch(e.What):
		case f.parent == rows[0]:
			s.nudgeFile(nodeID(0, f.number, 0), f.name)
		case serial != 0:
			s.nudgeFile(nodeID(serial, f.number, 0), f.path(e.VM))
		}
	}
}

// imageSerial returns the serial of the image that has a name now, 0 for none.
func (s *Server) imageSerial(name string) uint64 {
	for _, i := range s.o.Images.Infos() {
		if i.Name == name {
			return imageBit | i.Number
		}
	}
	return 0
}

func (s *Server) nudgeFile(file uint64, path string) {
	path = filepath.Join(s.o.Dir, path)
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}
	for _, node := range s.nodes.watchable(file) {
		s.nodes.touch(node, func() {
			// A VM that was renamed or removed since has no watchers of that name.
			_ = unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW)
		})
	}
}
