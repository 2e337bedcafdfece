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
	if err != nil {
		t.Fatal(err)
	}
	return guestCalls(stats)
}

// startDeaf starts a fake VM whose agent answers nothing from 2 s to 6 s after its start.
func (d *daemon) startDeaf(t *testing.T, name string) {
	t.Helper()
	d.makeVM(t, name, "fake.agent=deaf:2s-6s")
	if err := write(d.path(name, "state"), "start"); err != nil {
		t.Fatal(err)
	}
	if _, err := read(d.path(name, "wait", "healthy")); err != nil {
		t.Fatal(err)
	}
}

// follow gives the lines of a file that blocks, until the daemon ends.
func follow(t *testing.T, path string) <-chan string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	go func() { // ends with the daemon
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return lines
}

// TestWatchedHealth has guests that stop answering and begin again. Who follows events or watches `health` is told, though nobody reads it.
func TestWatchedHealth(t *testing.T) {
	d := testDaemon(t, "fake", `poll_interval = "1s"`)
	all := follow(t, filepath.Join(d.mount, "wait", "events"))
	d.startDeaf(t, "web")
	for _, want := range []string{"web health unhealthy the guest's agent did not answer in time", "web health healthy"} {
		awaitLine(t, all, want)
	}

	d = testDaemon(t, "fake", `poll_interval = "1h"`) // follows of all VMs would not be told in time
	for _, name := range []string{"followed", "watched"} {
		d.startDeaf(t, name)
	}
	events := follow(t, d.path("followed", "wait", "events"))
	w := newWatcher(t, d.path("watched", "health"))
	for _, want := range []string{"unhealthy", "healthy"} {
		for end := time.Now().Add(30 * time.Second); d.listed(t, "watched") != want && time.Now().Before(end); {
			w.saw(t, want, unix.IN_MODIFY|unix.IN_ATTRIB) // or of what was before
		}
		if got := d.listed(t, "watched"); got != want {
			t.Errorf("health is %s, not %s, although it is watched", got, want)
		}
	}
	for _, want := range []string{"followed health unhealthy the guest's agent did not answer in time", "followed health healthy"} {
		awaitLine(t, events, want)
	}
}

// listed is a VM's health as list knows it, which asks nobody.
func (d *daemon) listed(t *testing.T, name string) string {
	t.Helper()
	list, err := read(filepath.Join(d.mount, "list"))
	if err != nil {
		t.Fatal(err)
	}
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

// TestUnwatchedHealth looks at the whole tree, as ls and find do: no guest is asked for that, nor after watchers have gone.
func TestUnwatchedHealth(t *testing.T) {
	d := testDaemon(t, "fake")
	d.makeVM(t, "web", "")
	if err := write(d.path("web", "state"), "start"); err != nil {
		t.Fatal(err)
	}
	if _, err := read(d.path("web", "wait", "healthy")); err != nil {
		t.Fatal(err)
	}
	asked := func(during time.Duration, look func()) bool {
		before := d.calls(t)
		for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
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
	if err != nil {
		t.Fatal(err)
	}
	if !asked(3*time.Second, func() {}) {
		t.Error("no guest was asked though somebody holds health")
	}
	f.Close()
	time.Sleep(11 * time.Second) // what was read is kept warm for ten seconds
	if asked(2*time.Second, func() {}) {
		t.Error("a guest is asked though nobody holds health any more")
	}
}
