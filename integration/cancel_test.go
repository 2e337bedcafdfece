package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// heldEnv holds paths, separated by colons. With it the test program only reads these files, each
// in threads of its own, until it is killed.
const heldEnv = "BANGER_HELD_READERS"

// heldThreads is how many threads such a program has blocked.
const heldThreads = 100

// readForEver is the main function of that program. It repeats each read that ends.
func readForEver(paths []string) {
	for i := range heldThreads {
		go func() {
			buf := make([]byte, 4096)
			for {
				fd, err := unix.Open(paths[i%len(paths)], unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					continue
				}
				for n := 1; n > 0; {
					n, _ = unix.Read(fd, buf) // what was read does not matter
				}
				unix.Close(fd)
			}
		}()
	}
	select {}
}

// blocked counts the threads of a process that are in open(2) or read(2) at this moment.
func blocked(pid int) int {
	n := 0
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	for _, f := range files {
		b, _ := os.ReadFile(f) // empty for a thread that has ended (proc(5))
		number, _, _ := strings.Cut(string(b), " ")
		if number == strconv.Itoa(unix.SYS_READ) || number == strconv.Itoa(unix.SYS_OPENAT) {
			n++
		}
	}
	return n
}

// waitBlocked waits up to 20 s until so many threads of a process are blocked. It returns how many
// are.
func waitBlocked(pid, threads int) int {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if n := blocked(pid); n >= threads || time.Now().After(end) {
			return n
		}
	}
}

// silentVMs starts two VMs: the agent of `hung` never answers, that of `slow` answers after 2 s and
// has an open port.
func silentVMs(t *testing.T, d *daemon) {
	t.Helper()
	d.makeVM(t, "hung", "fake.agent=hang")
	d.makeVM(t, "slow", "fake.agent=slow:2s fake.listen=80/tcp/httpd")
	for _, name := range []string{"hung", "slow"} {
		must(t, write(d.path(name, "state"), "start"))
	}
	must(t, healthy(d, "slow"))
}

// hearSIGINT resets SIGINT for the programs that the test starts. A shell's `&` starts the test
// with that signal ignored.
func hearSIGINT(t *testing.T) {
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored, syscall.SIGINT)
	t.Cleanup(func() { signal.Stop(ignored) })
}

// TestCancel sends signals to readers that wait for a guest; each must be free at once.
func TestCancel(t *testing.T) {
	d := testDaemon(t, "fake")
	hearSIGINT(t)
	silentVMs(t, d)
	const each, most = 12, time.Second
	var all []time.Duration
	for _, file := range []string{"slow/stats", "slow/health", "slow/ports", "slow/ports.json",
		"hung/wait/healthy", "hung/wait/tcp/80", "slow/wait/tcp/81", "hung/wait/events"} {
		var times []time.Duration
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
			for n := 0; n < each; {
				took, ok := cancelled(t, d.path(file), sig)
				if !ok {
					continue // it got its answer before the signal
				}
				n++
				times = append(times, took)
			}
		}
		t.Logf("%s: %v in the median, %v at most", file, medianTime(times), slices.Max(times))
		all = append(all, times...)
	}
	const quick = 50 * time.Millisecond
	slices.Sort(all)
	within, _ := slices.BinarySearch(all, quick+1)
	t.Logf("%d of %d within 50 ms", within, len(all))
	median, slowest := medianTime(all), all[len(all)-1]
	if median > quick || slowest > most || within < len(all)*9/10 {
		t.Errorf("a reader was free %v after the signal in the median, %v at most", median, slowest)
	}
}

// cancelled starts a reader and sends it a signal while it waits. It returns the time until the
// reader has ended, and false if the reader had its answer before the signal.
func cancelled(t *testing.T, path string, sig syscall.Signal) (time.Duration, bool) {
	t.Helper()
	c := exec.Command("cat", path)
	must(t, c.Start())
	waits := waitBlockedOrEnded(c.Process.Pid, path)
	begun := time.Now()
	_ = c.Process.Signal(sig) // it may have ended
	must(t, ended(c))
	took := time.Since(begun)
	status := c.ProcessState.Sys().(syscall.WaitStatus)
	return took, waits && status.Signaled() && status.Signal() == sig
}

// ended waits for the end of a program after a signal. The end of the daemon frees a program that
// no signal ends.
func ended(c *exec.Cmd) error {
	done := make(chan struct{})
	go func() {
		_ = c.Wait() // how is in its ProcessState
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(10 * time.Second):
		return fmt.Errorf("%v does not end within 10 s of a signal", c)
	}
}

// waitBlockedOrEnded waits until a program is in an open(2) or read(2) that the daemon answers. It
// returns false if the program ended first.
func waitBlockedOrEnded(pid int, path string) bool {
	for {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if len(cmdline) == 0 {
			return false // a zombie has none
		}
		// The loader opens and reads too, but is elsewhere 5 ms later.
		if strings.Contains(string(cmdline), path) && blocked(pid) == 1 {
			time.Sleep(5 * time.Millisecond)
			if blocked(pid) == 1 {
				return true
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// TestCancelledReads ends 10,000 reads by a signal. Afterwards the daemon holds nothing of them and
// answers others.
func TestCancelledReads(t *testing.T) {
	d := testDaemon(t, "fake")
	silentVMs(t, d)
	var paths []string
	for _, file := range []string{"slow/stats", "slow/health", "slow/ports", "slow/stats.json",
		"hung/wait/tcp/80", "hung/wait/healthy", "hung/wait/stopped",
		"slow/wait/tcp/81", "slow/wait/events", "hung/wait/events"} {
		paths = append(paths, d.path(file))
	}
	kill := func() (int, time.Duration) {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), heldEnv+"="+strings.Join(paths, ":"))
		if err := c.Start(); err != nil {
			t.Error(err)
			return 0, 0
		}
		// Those that got an answer are on their way to the next.
		n := waitBlocked(c.Process.Pid, heldThreads*9/10)
		begun := time.Now()
		if err := c.Process.Kill(); err != nil {
			t.Error(err)
		}
		if err := ended(c); err != nil {
			t.Error(err)
		}
		return n, time.Since(begun)
	}
	before := d.footprint(t)
	t.Logf("before: %+v", before)

	var mu sync.Mutex
	cancelled, times := 0, []time.Duration{}
	var killers sync.WaitGroup
	for range 4 {
		killers.Add(1)
		go func() {
			defer killers.Done()
			for {
				mu.Lock()
				enough := cancelled >= 10_000 || t.Failed()
				mu.Unlock()
				if enough {
					return
				}
				n, took := kill()
				if n < heldThreads*9/10 {
					t.Errorf("%d threads wait, not %d", n, heldThreads)
				}
				mu.Lock()
				cancelled += n
				times = append(times, took)
				mu.Unlock()
			}
		}()
	}
	killers.Wait()
	if t.Failed() {
		return
	}
	slowest := slices.Max(times)
	t.Logf("%d reads cancelled; programs with %d of them ended in %v in the median, %v at most",
		cancelled, heldThreads, medianTime(times), slowest)
	if slowest > 5*time.Second {
		t.Errorf("a killed program took %v to end", slowest)
	}
	t.Logf("after: %+v", d.settled(t, before))

	// The daemon answers as before.
	for file, want := range map[string]string{
		"slow/stats": "guest_procs 10", "slow/health": "healthy", "slow/ports": "80",
		"slow/wait/tcp/80": ".", "hung/stats": "state running", "hung/health": "starting",
	} {
		if got, err := read(d.path(file)); err != nil || !strings.Contains(got, want) {
			t.Errorf("%s is %q (%v), without %q", file, got, err, want)
		}
	}
	path := d.path("hung", "wait", "tcp", "80")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	_, err = ignoringEINTR(func() (int, error) { return unix.Read(fd, make([]byte, 100)) })
	if !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a read of wait/tcp/80 that may not block gives %v", err)
	}
	for _, name := range []string{"hung", "slow"} {
		if err := write(d.path(name, "state"), "kill"); err != nil {
			t.Error(err)
		}
		if err := os.Remove(d.path(name)); err != nil {
			t.Error(err)
		}
	}
}
