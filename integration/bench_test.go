package integration

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	return compareRounds(rounds, ours, floor)
}

func compareRounds(rounds int, ours, floor func() time.Duration) (time.Duration, time.Duration) {
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
	}{{"reads", reportReads}, {"once", reportOnce}, {"commits", reportCommits}, {"scale", reportScale}, {"hung", reportHung}, {"boot", reportBoot}, {"quiet", reportQuiet}, {"exec", reportExec}, {"files", reportFiles}} {
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
		var a, b time.Duration
		d.profiled(t, fmt.Sprintf("reads-%d", readers), func() {
			a, b = compare(func() time.Duration { return open(ours, readers) },
				func() time.Duration { return open(floor, readers) })
		})
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
	var a, b, c, e time.Duration
	d.profiled(t, "commits-1", func() { a, b = compare(made(1), committed(1)) })
	d.profiled(t, "commits-16", func() { c, e = compare(made(16), committed(16)) })
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
