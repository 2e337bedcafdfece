package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/fs"
)

// requests returns how many requests of each operation the daemon has answered.
func (d *daemon) requests(t *testing.T) map[string]int {
	t.Helper()
	text, err := read(filepath.Join(d.mount, "metrics"))
	must(t, err)
	counts := map[string]int{}
	count := regexp.MustCompile(
		`banger_fuse_request_duration_seconds_count\{operation="(\w+)"\} (\d+)`)
	for _, m := range count.FindAllStringSubmatch(text, -1) {
		counts[m[1]], _ = strconv.Atoi(m[2]) // digits
	}
	return counts
}

// TestRequests counts the requests of a cached `stats`: at most OPEN, READ, the READ of the end,
// and RELEASE.
func TestRequests(t *testing.T) {
	d := testDaemon(t, "fake", `stats_max_age = "1m"`)
	d.makeVM(t, "web", "")
	must(t, write(d.path("web", "state"), "start"))
	stats := func() { readAll(t, d.path("web", "stats"), make([]byte, 4096)) }
	stats()
	// Look-ups are kept for a second: the walk is done before and after.
	const n = 100
	first := d.requests(t)
	second := d.requests(t)
	for range n {
		stats()
	}
	third := d.requests(t)
	for op, most := range map[string]int{"OPEN": n, "READ": 2 * n, "RELEASE": n, "FLUSH": 0} {
		// RELEASE is not waited for: one more or less may be under way.
		got := third[op] - second[op] - (second[op] - first[op])
		if got > most+1 || got < most-n/10 {
			t.Errorf("%d %s for %d reads, not %d", got, op, n, most)
		}
	}
	all := 0
	for op := range third {
		all += third[op] - second[op]
	}
	if all > 4*n+n/2 {
		t.Errorf("%d requests in all for %d reads: %v, then %v", all, n, second, third)
	}
}

// TestWalkRequests counts what a second walk over a VM costs. The directories that list nothing are
// read by the kernel's cache.
func TestWalkRequests(t *testing.T) {
	d := testDaemon(t, "fake")
	d.makeVM(t, "web", "")
	walk := func() {
		t.Helper()
		if out, err := exec.Command("find", d.path("web")).CombinedOutput(); err != nil {
			t.Fatalf("find: %v: %s", err, out)
		}
	}
	walk()
	before := d.requests(t)
	walk()
	after := d.requests(t)
	for op, most := range map[string]int{
		"OPENDIR":     5, // web, limits, snapshots, exec, wait
		"READDIRPLUS": 6, // two each of web, limits, snapshots
		"GETATTR":     2, // with those of metrics
	} {
		if got := after[op] - before[op]; got > most {
			t.Errorf("%d %s, at most %d expected", got, op, most)
		}
	}
}

// watcher collects the inotify(7) events of some files.
type watcher struct {
	fd int
}

func newWatcher(t *testing.T, paths ...string) *watcher {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	for _, p := range paths {
		const changes = unix.IN_ALL_EVENTS &^ (unix.IN_ACCESS | unix.IN_OPEN | unix.IN_CLOSE)
		if _, err := unix.InotifyAddWatch(fd, p, changes); err != nil {
			t.Fatal(err)
		}
	}
	return &watcher{fd}
}

// saw waits until an event of the mask came.
func (w *watcher) saw(t *testing.T, what string, mask uint32) {
	t.Helper()
	buf := make([]byte, 4096)
	end := time.Now().Add(10 * time.Second)
	for ; time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		n, err := unix.Read(w.fd, buf)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		must(t, err)
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			// struct inotify_event: wd, mask, cookie, len, name
			got := uint32(b[4]) | uint32(b[5])<<8 | uint32(b[6])<<16 | uint32(b[7])<<24
			length := int(uint32(b[12]) | uint32(b[13])<<8)
			b = b[unix.SizeofInotifyEvent+length:]
			if got&mask != 0 {
				return
			}
		}
	}
	t.Errorf("inotify does not tell of %s", what)
}

// TestInotify watches the files that docs/files.md declares as watchable, while others change them.
func TestInotify(t *testing.T) {
	d := testDaemon(t, "fake")
	vms := newWatcher(t, d.path())
	d.makeVM(t, "web", "fake.boot=300ms")
	vms.saw(t, "a mkdir", unix.IN_CREATE)
	must(t, os.Rename(d.path("web"), d.path("site")))
	vms.saw(t, "an mv", unix.IN_MOVED_TO)
	state, health := newWatcher(t, d.path("site", "state")), newWatcher(t, d.path("site", "health"))
	events := newWatcher(t, d.path("site", "events"))
	again := newWatcher(t, d.path("site", "state"))
	top := newWatcher(t, filepath.Join(d.mount, "events"))
	started := make(chan error, 1)
	go func() { started <- write(d.path("site", "state"), "start") }()
	// While the writer still blocks: its lock is not the watchers'.
	state.saw(t, "starting", unix.IN_MODIFY|unix.IN_ATTRIB)
	again.saw(t, "starting, to a second watcher", unix.IN_MODIFY|unix.IN_ATTRIB)
	select {
	case err := <-started:
		t.Errorf("the watchers were told after the start had ended (%v)", err)
	default:
	}
	for _, w := range []struct {
		*watcher
		what string
	}{{health, "health"}, {events, "an event"}, {top, "an event, at the top"}} {
		w.saw(t, w.what, unix.IN_MODIFY|unix.IN_ATTRIB)
	}
	must(t, <-started)
	state.saw(t, "running", unix.IN_MODIFY|unix.IN_ATTRIB)
	must(t, write(d.path("site", "state"), "kill"))
	must(t, os.Remove(d.path("site")))
	vms.saw(t, "an rmdir", unix.IN_DELETE)
}

// TestModes compares the tree with its table, and the table with the page that describes it.
func TestModes(t *testing.T) {
	d := testDaemon(t, "fake")
	d.makeVM(t, "web", "")
	page, err := os.ReadFile(filepath.Join(module, "docs", "files.md"))
	must(t, err)
	must(t, write(d.path("web", "disk"), "1M"))
	must(t, os.Mkdir(d.path("web", "snapshots", "one"), 0o755))
	must(t, write(d.path("web", "state"), "start"))
	session, err := read(d.path("web", "exec", "clone"))
	must(t, err)
	for _, row := range fs.Doc() {
		path := strings.NewReplacer("images/NAME", "images/builtin", "vms/NAME", "vms/web",
			"snapshots/NAME", "snapshots/one", "PORT", "80", "quota/UID", "quota/1000",
			"exec/N", "exec/"+strings.TrimSpace(session)).Replace(row.Path)
		info, err := os.Lstat(filepath.Join(d.mount, path))
		if err != nil {
			t.Error(err)
			continue
		}
		mode := row.Mode
		if row.Path == "vms" || row.Path == "images" {
			mode = 0o1775 // of the group whose members may create VMs and images
		}
		if got := info.Sys().(*syscall.Stat_t).Mode & 0o7777; got != mode {
			t.Errorf("%s has mode %o, the table says %o", path, got, mode)
		}
		name := filepath.Base(row.Path)
		if name == "NAME" || name == "PORT" {
			continue
		}
		word := "[*/` ]" + regexp.QuoteMeta(name) + "[*/` ,]"
		if !regexp.MustCompile(word).Match(page) {
			t.Errorf("docs/files.md does not speak of %s", row.Path)
		}
	}
}
