package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"banger/collector"
	"banger/collector/metrics"
	"banger/fs/guestfs"
	"banger/internal/host"
	"banger/vmm"
)

// What the mount is called in /proc/self/mountinfo.
const (
	fsName = "banger"
	fsType = "fuse." + fsName
)

// deadMountWait bounds how long a mount may take to say that it is dead.
const deadMountWait = 5 * time.Second

// Options of a mount. It closes none of them.
type Options struct {
	Dir        string // an absolute path; made if it is not there
	Manager    *vmm.Manager
	Archives   vmm.Archives
	Collector  *collector.Collector
	Images     vmm.ImageStore
	Version    string
	Metrics    *metrics.Metrics // gets the figures of the mount itself
	Config     func() string    // the daemon's settings in effect, flat keyed
	Log        *slog.Logger
	Group      int  // gid whose members may create VMs, -1 for none
	AllowOther bool // other users than the daemon's may enter
}

// Server is a mounted tree.
type Server struct {
	o       Options // immutable, as are all before handles
	fuse    *fuse.Server
	ctx     context.Context // ends when the mount does: frees who blocks
	cancel  context.CancelFunc
	started time.Time
	uid     uint32
	gid     uint32
	vmsMode uint32
	work    sync.WaitGroup
	begun   sync.WaitGroup // what goes on when its request has ended

	handles    handles
	sizes      sizes
	growing    growing
	eventSizes eventSizes
	nodes      *nodes
	sessions   *sessions
	allowances allowances
	callers    slots // files that take paths, by uid
	logs       slots // by uid
	terminals  slots // by VM
	exports    slots // by VM
	exporters  slots // exports by uid
	held       *held
	texts      sync.Map // *text by node

	guests *guestfs.FS

	nudgerTID atomic.Uint32 // the kernel names a request's sender by its thread

	refusalsMu sync.Mutex
	refusals   map[uint32]string // by uid; guarded by refusalsMu, as is the next
	lastUIDs   []uint32          // of refusals, the one refused longest ago first

	nudges chan vmm.Event
}

// Mount mounts the tree at o.Dir and serves it until Unmount. A dead mount of
// ours there is cleaned up first; a living one is refused.
func Mount(ctx context.Context, o Options) (*Server, error) {
	if err := clearDir(ctx, o.Dir); err != nil {
		return nil, err
	}
	s := &Server{
		o: o, started: time.Now(), uid: uint32(os.Getuid()), gid: uint32(os.Getgid()), vmsMode: 0o1755,
		sizes:    sizes{size: make(map[uint64]int64)},
		nodes:    newNodes(),
		sessions: newSessions(lingerFor),
		growing:  growing{open: make(map[uint64]*shared)}, eventSizes: eventSizes{size: make(map[uint64]*eventSize)},
		callers: newSlots(maxCallers), logs: newSlots(maxLogs), terminals: newSlots(maxTerminals),
		exports: newSlots(maxExports), exporters: newSlots(maxExportsOfUser),
		refusals: make(map[uint32]string),
		nudges:   make(chan vmm.Event, vmm.EventHistory),
	}
	if o.Group >= 0 {
		s.vmsMode = 0o1775
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.guests = guestfs.New(s.ctx, &s.work, guestMount{s})
	bridge, figures := newTimed(tree{raw{fuse.NewDefaultRawFileSystem(), s}})
	if err := o.Metrics.Register(figures); err != nil {
		s.cancel()
		return nil, fmt.Errorf("cannot mount %s: %w", o.Dir, err)
	}
	root := s.uid == 0
	if root {
		// go-fuse opens /dev/fuse without O_CLOEXEC; a VMM that inherited it would keep the mount of a dead
		// daemon from ever ending. Without root an exec is part of mounting, and the lock would be held against it.
		syscall.ForkLock.RLock()
	}
	server, err := fuse.NewServer(bridge, o.Dir, &fuse.MountOptions{
		FsName: fsName, Name: fsName,
		AllowOther:        o.AllowOther,
		Options:           []string{"default_permissions", "noexec"},
		DirectMountStrict: root,
		DirectMountFlags:  unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOSYMFOLLOW,
		DisableXAttrs:     true,
		DisableSplice:     true, // an answer in memory would be tried through a pipe first: two system calls for nothing
		MaxWrite:          guestfs.MaxIO,
		MaxBackground:     1 << 14,
		PanicHandler: func(v any) fuse.Status {
			o.Log.Error("a request panicked", "panic", v, "stack", string(debug.Stack()))
			return fuse.EIO
		},
	})
	closeOnExec()
	if root {
		syscall.ForkLock.RUnlock()
	}
	if err != nil {
		s.cancel()
		return nil, fmt.Errorf("cannot mount %s: %w", o.Dir, err)
	}
	s.fuse = server
	s.held = newHeld(o.Collector, server.EntryNotify)
	if err := s.serve(ctx, server.WaitMount); err != nil {
		return nil, err
	}
	if mountHas(o.Dir, "nosymfollow") {
		s.guests.ShowLinks()
	}
	o.Manager.OnChange(s.changed, func() {})
	s.work.Add(2)
	go s.nudger()
	go func() {
		defer s.work.Done()
		s.held.run(s.ctx)
	}()
	return s, nil
}

// serve begins to answer the kernel and returns when wait finds that it works. After an error
// neither the mount nor a goroutine that serves it is left.
func (s *Server) serve(ctx context.Context, wait func() error) error {
	go s.fuse.Serve() // ends with the mount: Wait waits for it
	// It asks the mount something, so that the kernel learns that files here cannot be polled.
	var err error
	e := apart(func() { err = wait() })
	if err = errors.Join(e, err); err == nil {
		return nil
	}
	s.cancel()
	return fmt.Errorf("cannot mount %s: %w", s.o.Dir, errors.Join(err, s.unmount(ctx)))
}

// fuseDevice is the number of /dev/fuse (Documentation/admin-guide/devices.txt of Linux), by whatever name it was opened.
var fuseDevice = unix.Mkdev(10, 229)

// closeOnExec keeps the connection to the kernel from the programs that the daemon starts.
func closeOnExec() {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range fds {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == fuseDevice {
			unix.CloseOnExec(fd)
		}
	}
}

// Wait returns when the tree is mounted no more, by whomever.
func (s *Server) Wait() { s.fuse.Wait() }

// Unmount frees who blocks in a read or a write, unmounts, detaching the mount
// when files are still open, and waits for what the package runs.
func (s *Server) Unmount(ctx context.Context) error {
	s.cancel()
	s.guests.Close()
	s.work.Wait()
	err := s.unmount(ctx)
	s.sessions.closeAll()
	ended := make(chan struct{})
	go func() { // ends with what was begun, at the latest with the process
		s.begun.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		err = errors.Join(err, errors.New("some changes still wait for the disk"))
	}
	return err
}

// pinnedWait is how long the kernel may take to end the connection of a mount that was removed.
const pinnedWait = time.Second

// unmount takes the mount out of the tree, whoever uses it, and ends its connection to the kernel.
// By itself the connection lasts as long as anybody has the mount in a mount namespace of his own.
func (s *Server) unmount(ctx context.Context) error {
	minor := topMount(s.o.Dir).Minor
	ended := make(chan error, 1)
	go func() { // ends with the connection, at the latest with the process
		err := s.fuse.Unmount()
		if err != nil {
			err = detach(ctx, s.o.Dir)
		}
		ended <- err
	}()
	select {
	case err := <-ended:
		return err
	case <-time.After(pinnedWait):
	}
	s.o.Log.Info("another mount namespace has the mount: ending its connection", "mount", s.o.Dir)
	if err := abort(minor); err != nil {
		// The end of the process closes the connection all the same.
		s.o.Log.Warn("the connection of the mount ends with this process only", "mount", s.o.Dir, "err", err)
		return nil
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the connection of %s was ended and is still served: %w", s.o.Dir, ctx.Err())
	}
}

// abort ends the FUSE connection of a mount by the minor number of its device, 0 if that is not
// known (Documentation/filesystems/fuse of Linux). The file is its owner's, so this needs no root.
func abort(minor int) error {
	if minor == 0 {
		return errors.New("its device number is not known")
	}
	return os.WriteFile(fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", minor), []byte("1"), 0)
}

// clearDir makes the directory ready for a mount.
func clearDir(ctx context.Context, dir string) error {
	if mounted(dir) {
		alive := make(chan error, 1)
		go func() { // ends when the kernel answers for the mount, at the latest when it is detached
			var st unix.Statfs_t
			alive <- unix.Statfs(dir, &st)
		}()
		select {
		case err := <-alive:
			if err == nil {
				return fmt.Errorf("cannot mount %s: another bangerd serves it: %w", dir, vmm.ErrBusy)
			}
			if !errors.Is(err, syscall.ENOTCONN) && !errors.Is(err, syscall.ECONNABORTED) {
				return fmt.Errorf("cannot mount %s: %w", dir, err)
			}
		case <-time.After(deadMountWait):
			return fmt.Errorf("cannot mount %s: the mount that is there does not answer: %w", dir, vmm.ErrBusy)
		}
		if err := detach(ctx, dir); err != nil {
			return fmt.Errorf("cannot remove the dead mount at %s: %w", dir, err)
		}
	}
	return host.MakeDirs(dir, 0o755)
}

// mounted reports whether dir is a mount of ours, whatever symbolic links lead to it.
func mounted(dir string) bool {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	return slices.Contains(Mounts(info), resolve(dir))
}

// resolve gives the path without symbolic links, as far as there are directories. It never looks at
// what the last part is unless that is a link: looking at a dead mount fails.
func resolve(dir string) string {
	for range 40 { // as many as the kernel follows (path_resolution(7))
		parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
		if err != nil {
			return dir
		}
		dir = filepath.Join(parent, filepath.Base(dir))
		target, err := os.Readlink(dir)
		if err != nil {
			return dir
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(parent, target)
		}
		dir = filepath.Clean(target)
	}
	return dir
}

// mountHas reports whether the mount of ours at dir has that option.
func mountHas(dir, option string) bool {
	return slices.Contains(strings.Split(topMount(dir).Options, ","), option)
}

// topMount returns the last mount of ours at dir, which is the one on top.
func topMount(dir string) (top mountinfo.Info) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return top
	}
	dir = resolve(dir)
	for _, m := range ourMounts(info) {
		if m.Mountpoint == dir {
			top = *m
		}
	}
	return top
}

// Mounts returns the mount points of banger in a mountinfo file.
func Mounts(info []byte) []string {
	var dirs []string
	for _, m := range ourMounts(info) {
		dirs = append(dirs, m.Mountpoint)
	}
	return dirs
}

// ourMounts returns banger's mounts, in order.
func ourMounts(info []byte) []*mountinfo.Info {
	return slices.DeleteFunc(host.Mounts(info), func(m *mountinfo.Info) bool {
		return m.FSType != fsType && (m.FSType != "fuse" || m.Source != fsName)
	})
}

// detach takes a mount out of the tree whoever uses it.
func detach(ctx context.Context, dir string) error {
	if os.Getuid() == 0 {
		return unix.Unmount(dir, unix.MNT_DETACH)
	}
	out, err := exec.CommandContext(ctx, "fusermount3", "-u", "-z", "--", dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
