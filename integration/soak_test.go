package integration

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var soakFor = flag.Duration("soak", 0,
	"how long TestSoak lasts, with real VMs (default: 20s without, 4m with -long)")

// figures are what a daemon holds while nothing is under way, and what the host holds of it.
type figures struct {
	footprint
	RSS      int64 // bytes
	Inotify  int   // watches of the daemon's
	Mounts   int
	Elements int // of nftables' sets and maps
	Tracked  int // connections that the host's namespace tracks
	Files    int // of VMs and images, in the state directory
}

func (d *daemon) figures(t *testing.T) figures {
	t.Helper()
	pid := d.cmd.Process.Pid
	f := figures{footprint: d.footprint(t), Mounts: len(d.mounts()), Elements: d.elements()}
	for _, dir := range []string{"vms", "images"} {
		f.Files += len(tree(filepath.Join(d.state, dir)))
	}
	for line := range strings.Lines(readFile(fmt.Sprintf("/proc/%d/status", pid))) {
		if w := strings.Fields(line); len(w) > 1 && w[0] == "VmRSS:" {
			kib, _ := strconv.ParseInt(w[1], 10, 64)
			f.RSS = kib << 10
		}
	}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	for _, fd := range fds {
		f.Inotify += strings.Count(readFile(fd), "inotify wd:")
	}
	const count = "/proc/sys/net/netfilter/nf_conntrack_count"
	f.Tracked, _ = strconv.Atoi(strings.TrimSpace(readFile(count)))
	return f
}

// elements counts those of the sets and maps of the daemon's tables (libnftables-json(5)).
func (d *daemon) elements() (n int) {
	for _, family := range []string{"inet", "bridge"} {
		text, _ := exec.Command("nft", "-j", "list", "table", family, "banger_"+d.bridge).Output()
		var list struct {
			Nftables []map[string]struct{ Elem []any }
		}
		_ = json.Unmarshal(text, &list) // no table: no elements
		for _, object := range list.Nftables {
			n += len(object["set"].Elem) + len(object["map"].Elem)
		}
	}
	return n
}

// moreRSS is how much a daemon may have grown between two idle moments. Go's runtime returns memory
// late and in parts, and the peaks of loads differ.
const moreRSS = 48 << 20

// flat compares with an earlier idle moment. What can be counted is equal; see moreGoroutines.
func (f figures) flat(before figures) bool {
	same := f.Machines == before.Machines && f.Taps == before.Taps && f.Mounts == before.Mounts &&
		f.Elements == before.Elements && f.Files == before.Files && f.Inotify == before.Inotify &&
		f.Children == before.Children && f.Connections <= before.Connections
	return same && f.Goroutines <= before.Goroutines+moreGoroutines &&
		f.FDs <= before.FDs+moreFDs && f.Pipes <= before.Pipes+morePipes &&
		f.Threads <= mostThreads && (raceEnabled || f.RSS <= before.RSS+moreRSS)
}

// soak is a daemon under load.
type soak struct {
	t    *testing.T
	d    *daemon
	real bool
	dir  string
	last atomic.Int64 // number of the last name
	done sync.Map     // *atomic.Int64 by the name of a worker
}

// TestSoak puts a daemon under mixed load in phases. Between them its VMs and images are the same,
// and so must be all that it holds. It prints a table of these moments.
func TestSoak(t *testing.T) {
	length, phase := *soakFor, 4*time.Second
	switch {
	case length > 0:
		phase = max(phase, min(2*time.Minute, length/6))
	case *long:
		length, phase = 4*time.Minute, 30*time.Second
	default:
		t.Parallel()
		length = 20 * time.Second
	}
	s := &soak{t: t, dir: t.TempDir()}
	s.real, _ = realVMs()
	s.real = s.real && *soakFor > 0
	driver := "fake"
	if s.real {
		driver = "qemu"
	}
	s.d = testDaemon(t, driver)
	must(t, openUp(s.dir))
	s.prepare()
	end := time.Now().Add(length)
	s.load(phase) // the first one fills caches and pools
	before := s.idle(nil, phase)
	t.Logf("%8s %4s %5s %4s %7s %4s %6s %8s %5s %7s %5s %7s", "after", "goro", "fds", "thr",
		"RSS", "taps", "mounts", "elements", "track", "inotify", "files", "loops")
	began := time.Now()
	for rounds := 1; ; rounds++ {
		s.load(phase)
		now := s.idle(&before, phase)
		t.Logf("%8s %4d %5d %4d %4d MB %4d %6d %8d %5d %7d %5d %7d",
			time.Since(began).Round(time.Second), now.Goroutines, now.FDs, now.Threads,
			now.RSS>>20, now.Taps, now.Mounts, now.Elements, now.Tracked, now.Inotify, now.Files,
			s.loops())
		if t.Failed() || time.Now().After(end) {
			break
		}
	}
	s.done.Range(func(name, n any) bool {
		t.Logf("%6d %s", n.(*atomic.Int64).Load(), name)
		return true
	})
}

// prepare makes the VMs and sources that stay.
func (s *soak) prepare() {
	k := &campaign{t: s.t, dir: s.dir}
	k.prepareSources()
	for _, vm := range []string{"base0", "base1"} {
		must(s.t, os.Mkdir(s.d.path(vm), 0o755))
		must(s.t, write(s.d.path(vm, "config"), "vmm fake\ncmdline fake.listen=80/tcp/httpd"))
		must(s.t, write(s.d.path(vm, "state"), "start"))
	}
	if s.real {
		must(s.t, os.Mkdir(s.d.path("real0"), 0o755))
		must(s.t, write(s.d.path("real0", "publish"), "127.0.0.1:28650:80/tcp"))
		must(s.t, write(s.d.path("real0", "state"), "start"))
		s.d.await(s.t, "real0", "healthy")
	}
}

// load runs all workers side by side until the time is over. Each leaves nothing of its own.
func (s *soak) load(phase time.Duration) {
	workers := map[string]func() error{
		"lives": s.life, "lives, too": s.life, "archives": s.archive, "images": s.image,
		"reads": s.reads, "watches": s.watch, "names": s.names,
	}
	if s.real {
		workers["real lives"], workers["connections"] = s.realLife, s.connect
	}
	var wg sync.WaitGroup
	end := time.Now().Add(phase)
	for name, work := range workers {
		count, _ := s.done.LoadOrStore(name, new(atomic.Int64))
		wg.Go(func() {
			for time.Now().Before(end) && !s.t.Failed() {
				if err := work(); err != nil {
					s.t.Errorf("%s: %v", name, err)
					return
				}
				count.(*atomic.Int64).Add(1)
			}
		})
	}
	wg.Wait()
}

func (s *soak) loops() (n int64) {
	s.done.Range(func(_, count any) bool { n += count.(*atomic.Int64).Load(); return true })
	return n
}

// idle waits until the daemon holds as much as before, and returns that. Sessions with guests that
// run on end after a minute without use.
func (s *soak) idle(before *figures, phase time.Duration) figures {
	s.t.Helper()
	wait := 30 * time.Second
	if s.real {
		wait = 150 * time.Second
	}
	must(s.t, write(filepath.Join(s.d.mount, "blobs"), "gc"))
	if before == nil { // until nothing changes any more
		last := s.d.figures(s.t)
		for end := time.Now().Add(wait); time.Now().Before(end); {
			time.Sleep(min(phase, 15*time.Second))
			now := s.d.figures(s.t)
			if now.FDs == last.FDs && now.Goroutines == last.Goroutines && !s.real {
				break
			}
			last = now
		}
		return last
	}
	for end := time.Now().Add(wait); ; time.Sleep(100 * time.Millisecond) {
		now := s.d.figures(s.t)
		if now.flat(*before) {
			return now
		}
		if time.Now().After(end) {
			s.t.Errorf("idle, the daemon holds %+v, and held %+v", now, *before)
			return now
		}
	}
}

func (s *soak) name(prefix string) string { return fmt.Sprintf("%s-%d", prefix, s.last.Add(1)) }

// first returns the first error of steps, each of which is done only if those before succeeded.
func first(steps ...func() error) error {
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

// life makes a fake VM, uses all that it has, and removes it.
func (s *soak) life() error {
	vm := s.name("life")
	path := func(parts ...string) string { return s.d.path(append([]string{vm}, parts...)...) }
	return first(
		func() error { return os.Mkdir(path(), 0o755) },
		func() error { return write(path("config"), "vmm fake\ndisk 1M\nexpose_fs 1") },
		func() error { return write(path("state"), "start") },
		func() error { _, err := read(path("wait", "healthy")); return err },
		func() error { return s.d.client("exec", vm, "--", "echo", "x").Run() },
		func() error { return os.WriteFile(path("fs", "file"), []byte("text"), 0o644) },
		func() error { _, err := read(path("fs", "file")); return err },
		func() error { _, err := os.ReadDir(path("fs")); return err },
		func() error { return os.Mkdir(path("snapshots", "s"), 0o755) },
		func() error { return write(path("state"), "stop") },
		func() error { return write(path("restore"), "s") },
		func() error { return os.Remove(path("snapshots", "s")) },
		func() error { return os.Rename(path(), s.d.path(vm+"-x")) },
		func() error { return os.Remove(s.d.path(vm + "-x")) })
}

// archive exports a VM and imports it again.
func (s *soak) archive() error {
	vm := s.name("archive")
	file := filepath.Join(s.dir, vm)
	defer os.Remove(file)
	return first(
		func() error { return os.Mkdir(s.d.path(vm), 0o755) },
		func() error { return write(s.d.path(vm, "config"), "vmm fake\ndisk 4M") },
		func() error { return s.d.client("export", vm, file).Run() },
		func() error { return os.Remove(s.d.path(vm)) },
		func() error { return s.d.client("import", file, vm+"-x").Run() },
		func() error { return os.Remove(s.d.path(vm + "-x")) },
		func() error { // one that is given up
			f, err := os.OpenFile(filepath.Join(s.d.mount, "wait/import"), os.O_WRONLY, 0)
			if err == nil {
				_, _ = io.WriteString(f, vm+"\n\x00")
				err = f.Close()
			}
			return err
		})
}

func (s *soak) image() error {
	path := filepath.Join(s.d.mount, "images", s.name("image"))
	return first(
		func() error { return os.Mkdir(path, 0o755) },
		func() error { return write(path+"/source", "rootfs:"+filepath.Join(s.dir, "rootfs.tar")) },
		func() error { _, err := read(path + "/wait/ready"); return err },
		func() error { return os.Remove(path) })
}

func (s *soak) reads() error {
	for _, file := range []string{"list", "list.json", "metrics", "hosts", "stats", "events",
		"vms/base0/stats", "vms/base1/ports.json", "vms/base1/health", "vms/base0/config"} {
		if _, err := read(filepath.Join(s.d.mount, file)); err != nil {
			return err
		}
	}
	time.Sleep(10 * time.Millisecond) // a monitor reads no faster
	return nil
}

// watch waits by inotify for a change, and blocks in readers that are killed.
func (s *soak) watch() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, path := range []string{s.d.path(), s.d.path("base0", "state"),
		s.d.path("base0", "health")} {
		if _, err := unix.InotifyAddWatch(fd, path, unix.IN_ALL_EVENTS); err != nil {
			return err
		}
	}
	readers := exec.Command("timeout", "0.2", "sh", "-c",
		`cat "$0/wait/events" & tail -f "$1/log" & cat "$1/console" & cat "$1/wait/stopped"; wait`,
		s.d.mount, s.d.path("base0"))
	readers.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	_ = readers.Run() // it is killed
	return first(
		func() error { return write(s.d.path("base0", "state"), "pause") },
		func() error { return write(s.d.path("base0", "state"), "resume") },
		func() error { _, err := unix.Read(fd, make([]byte, 1<<16)); return err })
}

// names asks the daemon's DNS, where the daemon has a bridge.
func (s *soak) names() error {
	time.Sleep(10 * time.Millisecond)
	bridge, err := net.InterfaceByName(s.d.bridge)
	if err != nil {
		return nil
	}
	addresses, err := bridge.Addrs()
	if err != nil || len(addresses) == 0 {
		return err
	}
	gateway, _, _ := strings.Cut(addresses[0].String(), "/")
	r := net.Resolver{PreferGo: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(gateway, "53"))
		}}
	name, want := "base0.vm.", false // a fake VM has no address
	if s.real {
		name, want = "real0.vm.", true
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err = r.LookupHost(ctx, name); want {
		return err
	}
	return nil
}

// realLife makes a real VM, uses it and removes it.
func (s *soak) realLife() error {
	vm := s.name("vm")
	path := func(parts ...string) string { return s.d.path(append([]string{vm}, parts...)...) }
	return first(
		func() error { return os.Mkdir(path(), 0o755) },
		func() error { return write(path("config"), "disk 16M\nexpose_fs 1") },
		func() error { return write(path("state"), "start") },
		func() error { _, err := read(path("wait", "healthy")); return err },
		func() error { return s.d.client("exec", vm, "--", "true").Run() },
		func() error { return s.d.client("exec", "real0", "--", "true").Run() },
		func() error { _, err := read(path("fs", "proc", "version")); return err },
		func() error { _, err := os.ReadDir(s.d.path("real0", "fs", "etc")); return err },
		func() error { _, err := read(path("ports")); return err },
		func() error { return os.Mkdir(path("snapshots", "s"), 0o755) },
		func() error { return write(path("publish"), "127.0.0.1:28651:80/tcp") },
		func() error { return write(path("state"), "stop") },
		func() error { return os.Remove(path()) })
}

// connect goes through a published port.
func (s *soak) connect() error {
	time.Sleep(50 * time.Millisecond)
	c, err := net.DialTimeout("tcp", "127.0.0.1:28650", 20*time.Second)
	if err != nil {
		return err
	}
	_, _ = io.WriteString(c, "GET / HTTP/1.0\r\n\r\n") // nothing listens: the guest closes it
	return c.Close()
}
