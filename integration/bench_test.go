package integration

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
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

	"banger/vmm"
	"banger/vmm/store"
)

var only = flag.String("report.only", "", "of TestReport: the parts whose names contain this")

var report = flag.Bool("report", false, "run TestReport, which measures and prints docs/performance.md's table")

// rounds is how often each side is measured, one after the other; the median counts.
const rounds = 5

// line is one row of the report.
type line struct{ what, ours, against, ratio, aim string }

// compare measures both sides in turns and gives their medians.
func compare(ours, floor func() time.Duration) (time.Duration, time.Duration) {
	var a, b []time.Duration
	for range rounds {
		a, b = append(a, ours()), append(b, floor())
	}
	slices.Sort(a)
	slices.Sort(b)
	return a[rounds/2], b[rounds/2]
}

func took(f func()) time.Duration {
	begun := time.Now()
	f()
	return time.Since(begun)
}

func against(what string, ours, floor time.Duration, aim string) line {
	return line{what, ours.Round(time.Microsecond / 10).String(), floor.Round(time.Microsecond / 10).String(), fmt.Sprintf("%.2fx", float64(ours)/float64(floor)), aim}
}

// TestReport measures banger beside the bare thing, in one run on this machine, and prints ratios.
func TestReport(t *testing.T) {
	if !*report {
		t.Skip("a measurement: make bench")
	}
	lines := []line{}
	for _, part := range []struct {
		name    string
		measure func(*testing.T) []line
	}{{"reads", reportReads}, {"once", reportOnce}, {"commits", reportCommits}, {"trees", reportTrees}, {"boot", reportBoot}, {"quiet", reportQuiet}} {
		if strings.Contains(part.name, *only) {
			lines = append(lines, part.measure(t)...)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n| what | banger | bare | ratio | aim |\n|---|---|---|---|---|\n")
	for _, l := range lines {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", l.what, l.ours, l.against, l.ratio, l.aim)
	}
	fmt.Println(b.String())
}

// readAll is what cat does with a small file.
func readAll(t *testing.T, path string, buf []byte) int {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	total := 0
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return total
		}
		total += n
	}
}

// each has readers do one thing n times together and gives the time of one.
func each(readers, n int, do func()) time.Duration {
	var wg sync.WaitGroup
	begun := time.Now()
	for range readers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range n / readers {
				do()
			}
		}()
	}
	wg.Wait()
	return time.Since(begun) / time.Duration(n)
}

func reportReads(t *testing.T) []line {
	d := testDaemon(t, "fake")
	d.makeVM(t, "web", "")
	if err := write(d.path("web", "state"), "start"); err != nil {
		t.Fatal(err)
	}
	text, err := read(d.path("web", "stats"))
	if err != nil {
		t.Fatal(err)
	}
	bare := startBare(t, 1, len(text)+1)
	ours, floor := d.path("web", "stats"), filepath.Join(bare.mount, "vms/v0/f0")
	open := func(path string, readers int) time.Duration {
		return each(readers, 6400, func() { readAll(t, path, make([]byte, 4096)) })
	}
	var lines []line
	for _, readers := range []int{1, 8, 64} {
		a, b := compare(func() time.Duration { return open(ours, readers) }, func() time.Duration { return open(floor, readers) })
		lines = append(lines, against(fmt.Sprintf("open+read+close of a cached `stats`, %d readers", readers), a, b, "≤ 1.0x"))
	}
	kept := func(path string) func() time.Duration {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		buf := make([]byte, 4096)
		return func() time.Duration {
			return each(1, 6400, func() {
				if _, err := unix.Pread(fd, buf, 0); err != nil && err != unix.EINTR {
					t.Error(err)
				}
			})
		}
	}
	a, b := compare(kept(ours), kept(floor))
	return append(lines, against("pread at 0 on a kept descriptor", a, b, "≤ 1.0x"))
}

// makeVM makes a fake VM.
func (d *daemon) makeVM(t *testing.T, name, cmdline string) {
	if err := os.Mkdir(d.path(name), 0o755); err != nil {
		t.Error(err)
		return
	}
	if err := write(d.path(name, "config"), "vmm fake\ncmdline "+cmdline); err != nil {
		t.Error(err)
	}
}

// reportOnce has 64 readers ask for stale ports at once.
func reportOnce(t *testing.T) []line {
	d := testDaemon(t, "fake")
	d.makeVM(t, "web", "fake.agent=slow:500ms fake.listen=80/tcp/httpd")
	if err := write(d.path("web", "state"), "start"); err != nil {
		t.Fatal(err)
	}
	if _, err := read(d.path("web", "wait", "healthy")); err != nil {
		t.Fatal(err)
	}
	each(64, 64, func() { readAll(t, d.path("web", "ports"), make([]byte, 4096)) })
	metrics, err := read(filepath.Join(d.mount, "metrics"))
	if err != nil {
		t.Fatal(err)
	}
	n := regexp.MustCompile(`banger_collections_total\{kind="ports"\} (\d+)`).FindStringSubmatch(metrics)
	if n == nil {
		t.Fatal("metrics count no collections of ports")
	}
	return []line{{"64 readers of stale `ports`", n[1] + " collections", "1", n[1] + "x", "1"}}
}

func reportCommits(t *testing.T) []line {
	d := testDaemon(t, "fake")
	s, err := store.Open(context.Background(), filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var next sync.Map
	serial := func(prefix string) string {
		n, _ := next.LoadOrStore(prefix, new(counter))
		return prefix + strconv.FormatInt(n.(*counter).add(), 10)
	}
	const n = 320
	made := func(at int) func() time.Duration {
		return func() time.Duration {
			return each(at, n, func() {
				dir := d.path(serial("v"))
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Error(err)
				}
				if err := os.Remove(dir); err != nil {
					t.Error(err)
				}
			})
		}
	}
	committed := func(at int) func() time.Duration {
		return func() time.Duration {
			return each(at, n, func() {
				name := serial("r")
				r := vmm.Record{ID: name, Name: name, Created: time.Now(), State: vmm.Stopped}
				if err := s.Insert(context.Background(), &r); err != nil {
					t.Error(err)
				}
				if err := s.Delete(context.Background(), r.Serial); err != nil {
					t.Error(err)
				}
			})
		}
	}
	a, b := compare(made(1), committed(1))
	c, e := compare(made(16), committed(16))
	return []line{
		against("mkdir + rmdir, against the commits", a, b, "≤ 1.3x"),
		against("the same, 16 at once", c, e, "≤ 1.3x"),
		{"16 at once against in a row", c.String(), a.String(), fmt.Sprintf("%.1fx faster", float64(a)/float64(c)), "≥ 3x"},
	}
}

type counter struct {
	mu sync.Mutex
	n  int64
}

func (c *counter) add() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}

// command runs a program with its output thrown away and gives its time.
func command(t *testing.T, name string, args ...string) func() time.Duration {
	return func() time.Duration {
		return took(func() {
			if err := exec.Command(name, args...).Run(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// memory gives the resident bytes of a process, cpu its seconds of CPU (proc(5)).
func memory(t *testing.T, pid int) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	kB := regexp.MustCompile(`VmRSS:\s+(\d+)`).FindSubmatch(status)
	n, err := strconv.Atoi(string(kB[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

func cpu(t *testing.T, pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

func reportTrees(t *testing.T) []line {
	d := testDaemon(t, "fake")
	var lines []line
	made := 0
	for _, count := range []int{1000, 10000} {
		var mu sync.Mutex
		each(16, (count-made+15)/16*16, func() {
			mu.Lock()
			n := made
			made++
			mu.Unlock()
			if n < count {
				d.makeVM(t, fmt.Sprintf("v%d", n), "")
			}
		})
		made = count
		bare := startBare(t, count, 400)
		ours, floor := d.path(), filepath.Join(bare.mount, "vms")
		a, b := compare(command(t, "ls", "-l", ours), command(t, "ls", "-l", floor))
		lines = append(lines, against(fmt.Sprintf("`ls -l` of %d VMs", count), a, b, "≤ 1.0x"))
		a, b = compare(command(t, "find", ours), command(t, "find", floor))
		lines = append(lines, against(fmt.Sprintf("`find` over %d VMs", count), a, b, "≤ 1.0x"))
		if count == 1000 {
			lines = append(lines, reportIdle(t, d, count)...)
		}
		if count == 10000 {
			lines = append(lines, line{"RSS after that, 10,000 stopped", mib(memory(t, d.cmd.Process.Pid)), mib(memory(t, bare.cmd.Process.Pid)), fmt.Sprintf("%.2fx", float64(memory(t, d.cmd.Process.Pid))/float64(memory(t, bare.cmd.Process.Pid))), "≤ 50 MB"})
		}
		bare.stop()
	}
	for _, file := range []struct{ name, aim string }{{"list", "≤ 20 ms"}, {"metrics", "≤ 150 ms"}} {
		buf := make([]byte, 1<<20)
		a, _ := compare(func() time.Duration { return took(func() { readAll(t, filepath.Join(d.mount, file.name), buf) }) }, func() time.Duration { return 0 })
		lines = append(lines, line{"one read of `" + file.name + "`, 10,000 VMs", a.Round(time.Millisecond / 10).String(), "", "", file.aim})
	}
	if err := d.signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	a := took(func() {
		if err := d.start(); err != nil {
			t.Fatal(err)
		}
	})
	return append(lines, line{"daemon's start with 10,000 records, to the mount answering", a.Round(time.Millisecond).String(), "", "", "≤ 1 s"})
}

func mib(n int) string { return fmt.Sprintf("%d MiB", n>>20) }

// reportIdle has all VMs run and nobody look, for a while.
func reportIdle(t *testing.T, d *daemon, count int) []line {
	var mu sync.Mutex
	next := 0
	do := func(word string) {
		next = 0
		each(16, (count+15)/16*16, func() {
			mu.Lock()
			n := next
			next++
			mu.Unlock()
			if n >= count {
				return
			}
			if err := write(d.path(fmt.Sprintf("v%d", n), "state"), word); err != nil {
				t.Error(err)
			}
		})
	}
	do("start")
	time.Sleep(15 * time.Second) // what was read goes cold
	const window = 20 * time.Second
	before := cpu(t, d.cmd.Process.Pid)
	time.Sleep(window)
	used := cpu(t, d.cmd.Process.Pid) - before
	rss := memory(t, d.cmd.Process.Pid)
	do("kill")
	return []line{{fmt.Sprintf("CPU with %d running, nobody looking", count), fmt.Sprintf("%.2f %% of a core", 100*used.Seconds()/window.Seconds()), "", "", "≤ 0.2 %"},
		{fmt.Sprintf("RSS with %d running", count), mib(rss), "", "", ""}}
}
