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
	"banger/internal/audit"
	"banger/internal/host"
	"banger/vmm"
)

// Names of the mount in /proc/self/mountinfo.
const (
	fsName = "banger"
	fsType = "fuse." + fsName
)

// deadMountWait bounds the wait for the error of a dead mount.
const deadMountWait = 5 * time.Second

// Options of a mount. The caller closes them after Unmount.
type Options struct {
	Dir        string // absolute; created if it is missing
	Manager    *vmm.Manager
	Archives   vmm.Archives
	Collector  *collector.Collector
	Images     vmm.ImageStore
	Version    string
	Metrics    *metrics.Metrics // receives the figures of the mount itself
	Config     func() string    // the daemon's settings in effect, flat keyed
	Audit      *audit.Log       // receives a line for each change; nil for none
	Log        *slog.Logger
	Group      int  // gid whose members may create VMs, -1 for none
	AllowOther bool // also for other users than the daemon's
}

// Server is a mounted tree.
type Server struct {
	o        Options // immutable, as are all up to handles
	fuse     *fuse.Server
	ctx      context.Context // ends with the mount and frees blocked calls
	cancel   context.CancelFunc
	started  time.Time
	uid, gid uint32
	guests   *guestfs.FS
	work     sync.WaitGroup
	changes  sync.WaitGroup // that go on after the end of their calls

	handles    handles
	nodes      *nodes
	sizes      sizes
	growing    growing
	eventSizes eventSizes
	renderings sync.Map // *rendering by node
	sessions   *sessions
	followers  *followers
	allowances allowances
	callers    slots // of files that store paths, by uid
	logs       slots // by uid
	terminals  slots // by VM
	exports    slots // by VM
	exporters  slots // of exports, by uid

	nudges    chan vmm.Event
	nudgerTID atomic.Uint32 // the kernel names the sender of a request by its thread

	refusalsMu sync.Mutex // guards refusals
	refusals   refusals
}

func newServer(o Options) *Server {
	s := &Server{
		o: o, started: time.Now(), uid: uint32(os.Getuid()), gid: uint32(os.Getgid()),
		nodes:      newNodes(),
		growing:    growing{open: make(map[uint64]*shared)},
		eventSizes: eventSizes{size: make(map[uint64]*eventSize)},
		sessions:   newSessions(lingerFor),
		callers:    newSlots(maxCallers),
		logs:       newSlots(maxLogs),
		terminals:  newSlots(maxTerminals),
		exports:    newSlots(maxExports),
		exporters:  newSlots(maxExportsOfUser),
		refusals:   refusals{last: make(map[uint32]string)},
		nudges:     make(chan vmm.Event, vmm.EventHistory),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.guests = guestfs.New(s.ctx, &s.work, guestMount{s})
	s.followers = newFollowers(o.Collector, func(parent uint64, name string) {
		s.fuse.EntryNotify(parent, name)
	})
	return s
}

// Mount mounts the tree at o.Dir and serves it until Unmount. It first removes a dead mount of
// banger's there, and refuses a living one.
func Mount(ctx context.Context, o Options) (*Server, error) {
	if err := clearDir(ctx, o.Dir); err != nil {
		return nil, err
	}
	s := newServer(o)
	if err := s.connect(); err != nil {
		s.cancel()
		return nil, fmt.Errorf("cannot mount %s: %w", o.Dir, err)
	}
	if err := s.serve(ctx, s.fuse.WaitMount); err != nil {
		return nil, err
	}
	if mountHas(o.Dir, "nosymfollow") {
		s.guests.ShowLinks()
	}
	o.Manager.OnChange(s.changed, func() {})
	s.work.Go(s.nudger)
	s.work.Go(func() { s.followers.run(s.ctx) })
	return s, nil
}

// connect mounts the tree without serving it.
func (s *Server) connect() (err error) {
	bridge, figures := newBridge(s)
	if err := s.o.Metrics.Register(figures); err != nil {
		return err
	}
	if s.uid == 0 {
		// For CloseFUSEOnExec. Without root, mounting executes a program, which this lock would
		// block.
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
	}
	s.fuse, err = fuse.NewServer(bridge, s.o.Dir, s.mountOptions())
	host.CloseFUSEOnExec()
	return err
}

func (s *Server) mountOptions() *fuse.MountOptions {
	return &fuse.MountOptions{
		FsName: fsName, Name: fsName,
		AllowOther:        s.o.AllowOther,
		Options:           []string{"default_permissions", "noexec"},
		DirectMountStrict: s.uid == 0,
		DirectMountFlags:  unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOSYMFOLLOW,
		DisableXAttrs:     true,
		DisableSplice:     true, // a pipe costs two system calls more for an answer in memory
		MaxWrite:          guestfs.MaxIO,
		MaxBackground:     1 << 14,
		PanicHandler: func(v any) fuse.Status {
			s.o.Log.Error("a request panicked", "panic", v, "stack", string(debug.Stack()))
			return fuse.EIO
		},
	}
}

// serve starts answering the kernel and returns when wait does. After an error it leaves neither
// the mount nor a goroutine.
func (s *Server) serve(ctx context.Context, wait func() error) error {
	go s.fuse.Serve() // ends with the mount: Wait waits for it
	// wait uses the mount, by which the kernel learns that its files cannot be polled.
	var err error
	e := apart(func() { err = wait() })
	if err = errors.Join(e, err); err == nil {
		return nil
	}
	s.cancel()
	return fmt.Errorf("cannot mount %s: %w", s.o.Dir, errors.Join(err, s.unmount(ctx)))
}

// Wait blocks until the tree is unmounted, by any process.
func (s *Server) Wait() { s.fuse.Wait() }

// Unmount ends blocked calls, unmounts, also while files are open, and waits for the package's
// goroutines until ctx ends.
func (s *Server) Unmount(ctx context.Context) error {
	s.cancel()
	s.guests.Close()
	s.work.Wait()
	err := s.unmount(ctx)
	s.sessions.closeAll()
	ended := make(chan struct{})
	go func() { // ends with the changes, at the latest with the process
		s.changes.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		err = errors.Join(err, errors.New("some changes still wait for the disk"))
	}
	return err
}

// pinnedWait is how long the kernel may take to end the connection of an unmounted tree.
const pinnedWait = time.Second

// unmount removes the mount, also while it is in use, and ends its connection to the kernel. By
// itself the connection lasts while any mount namespace has the mount.
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
		s.o.Log.Warn("the connection of the mount ends with this process only",
			"mount", s.o.Dir, "err", err)
		return nil
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the connection of %s was ended and is still served: %w",
			s.o.Dir, ctx.Err())
	}
}

// abort ends the FUSE connection of a mount by the minor number of its device, 0 if that is unknown
// (Documentation/filesystems/fuse of Linux). The owner of the mount owns the file, so this needs no
// root.
func abort(minor int) error {
	if minor == 0 {
		return errors.New("its device number is unknown")
	}
	return os.WriteFile(fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", minor), []byte("1"), 0)
}

// clearDir prepares a directory for a mount.
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
				return fmt.Errorf("cannot mount %s: another bangerd serves it: %w",
					dir, vmm.ErrBusy)
			}
			if !errors.Is(err, syscall.ENOTCONN) && !errors.Is(err, syscall.ECONNABORTED) {
				return fmt.Errorf("cannot mount %s: %w", dir, err)
			}
		case <-time.After(deadMountWait):
			return fmt.Errorf("cannot mount %s: the mount there does not answer: %w",
				dir, vmm.ErrBusy)
		}
		if err := detach(ctx, dir); err != nil {
			return fmt.Errorf("cannot remove the dead mount at %s: %w", dir, err)
		}
	}
	return host.MakeDirs(dir, 0o755)
}

// mounted reports whether dir is a mount of banger's, also through symbolic links.
func mounted(dir string) bool { return topMount(dir).Mountpoint != "" }

// resolve returns the path without symbolic links, as far as it exists. It reads the last part only
// as a link: a dead mount there would fail.
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

// mountHas reports whether the mount of banger's at dir has an option.
func mountHas(dir, option string) bool {
	return slices.Contains(strings.Split(topMount(dir).Options, ","), option)
}

// topMount returns the last mount of banger's at dir, which covers the others.
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

// detach removes a mount also while it is in use.
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
