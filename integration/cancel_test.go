package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// heldEnv makes the test program read instead of testing: files, separated by colons, each in threads of its own until it is killed.
const heldEnv = "BANGER_HELD_READERS"

// heldThreads is how many threads such a program has blocked.
const heldThreads = 100

// readForEver is the main function of that program. A read that ends is begun again, whatever it gave.
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
		b, _ := os.ReadFile(f) // "running" or the number of the system call (proc(5)), nothing of a thread that has ended
		number, _, _ := strings.Cut(string(b), " ")
		if number == strconv.Itoa(unix.SYS_READ) || number == strconv.Itoa(unix.SYS_OPENAT) {
			n++
		}
	}
	return n
}

// waitBlocked waits until so many threads of a process are, or some time has passed, and gives how many are.
func waitBlocked(pid, threads int) int {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if n := blocked(pid); n >= threads || time.Now().After(end) {
			return n
		}
	}
}

// silentVMs makes two running VMs: the agent of `hung` never answers, that of `slow` after 2 s, with a port to show.
func silentVMs(t *testing.T, d *daemon) {
	t.Helper()
	d.makeVM(t, "hung", "fake.agent=hang")
	d.makeVM(t, "slow", "fake.agent=slow:2s fake.listen=80/tcp/httpd")
	for _, name := range []string{"hung", "slow"} {
		if err := write(d.path(name, "state"), "start"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := read(d.path("slow", "wait", "healthy")); err != nil {
		t.Fatal(err)
	}
}

// hearSIGINT lets it end the programs that are started from now on even where this one was told to ignore it, as a shell's `&` does.
func hearSIGINT(t *testing.T) {
	taken := make(chan os.Signal, 1)
	signal.Notify(taken, syscall.SIGINT)
	t.Cleanup(func() { signal.Stop(taken) })
}

// TestCancel sends signals to readers that wait for a guest; each must be free at once.
func TestCancel(t *testing.T) {
	d := testDaemon(t, "fake")
	hearSIGINT(t)
	silentVMs(t, d)
	const each, most = 12, time.Second
	var all []time.Duration
	for _, file := range []string{"slow/stats", "slow/health", "slow/ports", "slow/ports.json", "hung/wait/healthy", "hung/wait/tcp/80", "slow/wait/tcp/81", "hung/wait/events"} {
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
		slices.Sort(times)
		t.Logf("%s: %v in the median, %v at most", file, times[len(times)/2].Round(10*time.Microsecond), times[len(times)-1].Round(10*time.Microsecond))
		all = append(all, times...)
	}
	slices.Sort(all)
	within := len(all)
	if i := slices.IndexFunc(all, func(d time.Duration) bool { return d > 50*time.Millisecond }); i >= 0 {
		within = i
	}
	t.Logf("%d of %d within 50 ms", within, len(all))
	if median := all[len(all)/2]; median > 50*time.Millisecond || all[len(all)-1] > most || within < len(all)*9/10 {
		t.Errorf("a reader was free %v after the signal in the median, %v at most; within 50 ms %d of %d", median, all[len(all)-1], within, len(all))
	}
}

// cancelled has a program read the file, sends it a signal while it waits and gives the time until it has ended; false when the signal came too late.
func cancelled(t *testing.T, path string, sig syscall.Signal) (time.Duration, bool) {
	t.Helper()
	c := exec.Command("cat", path)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waits := waitBlockedOrEnded(c.Process.Pid, path)
	begun := time.Now()
	_ = c.Process.Signal(sig) // it may have ended
	if err := ended(c); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begun)
	status := c.ProcessState.Sys().(syscall.WaitStatus)
	return took, waits && status.Signaled() && status.Signal() == sig
}

// ended waits for the end of a program that was sent a signal. One that no signal ends is freed with the daemon, when the test ends.
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

// waitBlockedOrEnded waits until the program is in a system call that the daemon answers: open(2) or read(2) after its start; false when
// it ended first.
func waitBlockedOrEnded(pid int, path string) bool {
	for {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if len(cmdline) == 0 {
			return false // a zombie has none
		}
		// The loader opens and reads too, so look twice, some time apart: only what waits is still there.
		if strings.Contains(string(cmdline), path) && blocked(pid) == 1 {
			time.Sleep(5 * time.Millisecond)
			if blocked(pid) == 1 {
				return true
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// TestCancelledReads has 10,000 reads end by a signal: the daemon holds nothing of them afterwards, and goes on answering.
func TestCancelledReads(t *testing.T) {
	d := testDaemon(t, "fake")
	silentVMs(t, d)
	var paths []string
	for _, file := range []string{"slow/stats", "slow/health", "slow/ports", "slow/stats.json", "hung/wait/tcp/80", "hung/wait/healthy", "hung/wait/stopped",
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
	slices.Sort(times)
	t.Logf("%d reads cancelled; programs with %d of them ended in %v in the median, %v at most", cancelled, heldThreads, times[len(times)/2], times[len(times)-1])
	if times[len(times)-1] > 5*time.Second {
		t.Errorf("a killed program took %v to end", times[len(times)-1])
	}
	t.Logf("after: %+v", d.settled(t, before))

	// Who asks now is answered as ever.
	for file, want := range map[string]string{
		"slow/stats": "guest_procs 10", "slow/health": "healthy", "slow/ports": "80", "slow/wait/tcp/80": ".", "hung/stats": "state running", "hung/health": "starting",
	} {
		if got, err := read(d.path(file)); err != nil || !strings.Contains(got, want) {
			t.Errorf("%s is %q (%v), without %q", file, got, err, want)
		}
	}
	fd, err := unix.Open(d.path("hung", "wait", "tcp", "80"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, make([]byte, 100)) }); !errors.Is(err, unix.EAGAIN) {
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

// footprint is what the daemon has now that it may hold on to by mistake.
type footprint struct {
	Goroutines, FDs, Pipes, Connections, Threads int
	Children, Machines, Taps                     int // processes of its own, QEMUs, links
}

var goroutinesMetric = regexp.MustCompile(`(?m)^go_goroutines (\d+)$`)

func (d *daemon) footprint(t *testing.T) footprint {
	t.Helper()
	metrics, err := read(filepath.Join(d.mount, "metrics"))
	if err != nil {
		t.Fatal(err)
	}
	m := goroutinesMetric.FindStringSubmatch(metrics)
	if m == nil {
		t.Fatal("metrics do not tell of goroutines")
	}
	f := footprint{Machines: len(d.machines()), Taps: len(d.taps(t))}
	f.Goroutines, _ = strconv.Atoi(m[1]) // digits
	pid := d.cmd.Process.Pid
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	f.Threads = len(tasks)
	for _, file := range tasks {
		b, _ := os.ReadFile(file) // nothing of a thread that has ended
		f.Children += len(strings.Fields(string(b)))
	}
	// Field 10 of a line is the socket's inode (Documentation/networking/proc_net_tcp.rst).
	inodes := map[string]bool{}
	for _, file := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, file))
		if err != nil {
			continue // a host without IPv6
		}
		for _, line := range strings.Split(string(b), "\n")[1:] {
			if f := strings.Fields(line); len(f) > 9 {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		switch to, err := os.Readlink(fd); {
		case err != nil: // closed meanwhile
		case strings.HasPrefix(to, "pipe:"):
			f.Pipes++
		case inodes[to]:
			f.Connections++
		default:
			f.FDs++
		}
	}
	return f
}

// How much more than before is no leak: the mount's readers come and go, it keeps the pipes and threads that as many as ever
// were at work at once needed.
const moreGoroutines, moreFDs, morePipes, mostThreads = 10, 2, 64, 100

// settled waits until the daemon holds no more than it did, and gives what it holds.
func (d *daemon) settled(t *testing.T, before footprint) footprint {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		now := d.footprint(t)
		if now.Goroutines <= before.Goroutines+moreGoroutines && now.FDs <= before.FDs+moreFDs &&
			now.Pipes <= before.Pipes+morePipes && now.Connections <= before.Connections &&
			now.Children <= before.Children && now.Machines <= before.Machines && now.Taps <= before.Taps && now.Threads <= mostThreads {
			return now
		}
		if time.Now().After(end) {
			t.Errorf("the daemon holds %+v and held %+v before", now, before)
			return now
		}
	}
}
