package integration

import (
	"bufio"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// calls is how many requests the daemon has sent to agents.
func (d *daemon) calls(t *testing.T) string {
	t.Helper()
	stats, err := read(filepath.Join(d.mount, "stats"))
	must(t, err)
	return guestCalls(stats)
}

// startDeaf starts a fake VM whose agent answers nothing from 2 s to 6 s after its start.
func (d *daemon) startDeaf(t *testing.T, name string) {
	t.Helper()
	d.makeVM(t, name, "fake.agent=deaf:2s-6s")
	must(t, write(d.path(name, "state"), "start"))
	must(t, healthy(d, name))
}

// follow returns the lines of a file that blocks, until the daemon ends.
func follow(t *testing.T, path string) <-chan string {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	lines := make(chan string, 1000)
	go func() { // ends with the daemon
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return lines
}

// TestWatchedHealth has guests that stop answering and begin again. Followers of events and
// watchers of `health` see that without any reader of `health`.
func TestWatchedHealth(t *testing.T) {
	d := testDaemon(t, "fake", `poll_interval = "1s"`)
	all := follow(t, filepath.Join(d.mount, "wait", "events"))
	d.startDeaf(t, "web")
	const unhealthy = " health unhealthy the guest's agent did not answer in time"
	for _, want := range []string{"web" + unhealthy, "web health healthy"} {
		awaitLine(t, all, want)
	}

	d = testDaemon(t, "fake", `poll_interval = "1h"`) // too late for followers of all VMs
	for _, name := range []string{"followed", "watched"} {
		d.startDeaf(t, name)
	}
	events := follow(t, d.path("followed", "wait", "events"))
	w := newWatcher(t, d.path("watched", "health"))
	for _, want := range []string{"unhealthy", "healthy"} {
		end := time.Now().Add(30 * time.Second)
		for d.listed(t, "watched") != want && time.Now().Before(end) {
			w.saw(t, want, unix.IN_MODIFY|unix.IN_ATTRIB) // or of what was before
		}
		if got := d.listed(t, "watched"); got != want {
			t.Errorf("health is %s, not %s, although it is watched", got, want)
		}
	}
	for _, want := range []string{"followed" + unhealthy, "followed health healthy"} {
		awaitLine(t, events, want)
	}
}

// listed is a VM's health as list knows it, which asks nobody.
func (d *daemon) listed(t *testing.T, name string) string {
	t.Helper()
	list, err := read(filepath.Join(d.mount, "list"))
	must(t, err)
	for _, line := range strings.Split(list, "\n") {
		if f := strings.Fields(line); f[0] == name {
			return f[2]
		}
	}
	return ""
}

func awaitLine(t *testing.T, lines <-chan string, want string) {
	t.Helper()
	for deadline := time.After(30 * time.Second); ; {
		select {
		case line := <-lines:
			if strings.HasSuffix(line, " "+want) {
				return
			}
		case <-deadline:
			t.Fatalf("nobody tells of %q", want)
		}
	}
}

// TestUnwatchedHealth reads the whole tree as ls and find do. That asks no guest, nor does the
// daemon ask after the last watcher.
func TestUnwatchedHealth(t *testing.T) {
	d := testDaemon(t, "fake")
	d.makeVM(t, "web", "")
	must(t, write(d.path("web", "state"), "start"))
	must(t, healthy(d, "web"))
	asked := func(during time.Duration, look func()) bool {
		before := d.calls(t)
		end := time.Now().Add(during)
		for ; time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			look()
		}
		return d.calls(t) != before
	}
	walk := func() {
		if err := filepath.WalkDir(d.mount, func(_ string, e fs.DirEntry, err error) error {
			if err == nil {
				_, err = e.Info()
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	if asked(2*time.Second, walk) {
		t.Error("a guest was asked because somebody listed the tree")
	}
	f, err := os.Open(d.path("web", "health"))
	must(t, err)
	if !asked(3*time.Second, func() {}) {
		t.Error("no guest was asked though somebody holds health")
	}
	f.Close()
	time.Sleep(11 * time.Second) // what was read is kept warm for ten seconds
	if asked(2*time.Second, func() {}) {
		t.Error("a guest is asked though nobody holds health any more")
	}
}
