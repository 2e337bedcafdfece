package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// command returns a function that runs a program, discards its output and returns its time.
func command(t *testing.T, name string, args ...string) func() time.Duration {
	return func() time.Duration {
		return took(func() {
			if err := exec.Command(name, args...).Run(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// memory returns the resident memory of a process.
func memory(t *testing.T, pid int) figure {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	kB := regexp.MustCompile(`VmRSS:\s+(\d+)`).FindSubmatch(status)
	n, err := strconv.ParseFloat(string(kB[1]), 64)
	must(t, err)
	return figure{n * 1024, "B"}
}

// cpu returns the CPU time that a process has used.
func cpu(t *testing.T, pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

// together calls do with each number from first up to, but without, end, from 16 goroutines.
func together(first, end int, do func(n int)) {
	var next atomic.Int64
	next.Store(int64(first))
	each(16, 16, func() {
		for n := int(next.Add(1)) - 1; n < end; n = int(next.Add(1)) - 1 {
			do(n)
		}
	})
}

func vmName(n int) string { return fmt.Sprintf("v%d", n) }

// command writes the same word to the state of VMs.
func (d *daemon) command(t *testing.T, first, end int, word string) {
	together(first, end, func(n int) {
		if err := write(d.path(vmName(n), "state"), word); err != nil {
			t.Error(err)
		}
	})
}

// benchThousand measures 1,000 VMs, stopped, running unwatched, and watched.
func benchThousand(b *bench) {
	const count = 1000
	d := benchListing(b, count)
	d.command(b.T, 0, count, "start")
	time.Sleep(15 * time.Second) // the captures of the listings expire
	share := d.share(b.T, 20*time.Second)
	b.row("CPU with 1,000 running, nobody looking", share, nothing, "≤ 0.2 %")
	benchWatched(b, d, count, "≤ 2 %")
}

// benchTenThousand measures 10,000 VMs, stopped, listed, watched, and found again by a new daemon.
func benchTenThousand(b *bench) {
	const count = 10_000
	d := benchListing(b, count)
	d.command(b.T, 0, count, "start")
	command(b.T, "find", d.path())()
	rss := d.quietMemory(b.T)
	b.row("RSS half a minute after `find`, 10,000 running", rss, nothing, "≤ 120 MB")
	benchWatched(b, d, count, "≤ 20 %")
	buf := make([]byte, 1<<20)
	for _, file := range []struct{ name, aim string }{
		{"list", "≤ 20 ms"}, {"metrics", "≤ 150 ms"},
	} {
		whole := func() time.Duration {
			return took(func() { readAll(b.T, filepath.Join(d.mount, file.name), buf) })
		}
		var x time.Duration
		d.profiled(b.T, file.name, func() {
			x, _ = compareRounds(11, whole, func() time.Duration { return 0 })
		})
		b.row("one read of `"+file.name+"`, 10,000 running", seconds(x), nothing, file.aim)
	}
	d.command(b.T, 0, count, "kill")
	must(b.T, d.signal(syscall.SIGTERM))
	x := took(func() { must(b.T, d.start()) })
	b.row("daemon's start with 10,000 records, to the mount answering",
		seconds(x), nothing, "≤ 1 s")
}

// benchListing makes so many VMs and lists them beside a bare tree of the same shape.
func benchListing(b *bench, count int) *daemon {
	d := testDaemon(b, "fake")
	together(0, count, func(n int) { d.makeVM(b.T, vmName(n), "") })
	shape := bareShape{Dirs: count, Size: 400}
	entries, err := os.ReadDir(d.path(vmName(0)))
	must(b.T, err)
	for _, e := range entries {
		if e.IsDir() {
			shape.Subdirs++
		} else {
			shape.Files++
		}
	}
	bare := startBare(b.T, shape)
	defer bare.stop()
	for _, c := range []struct {
		what, profile string
		argv          []string
	}{
		{"`ls` of %d VMs", "ls-%d", []string{"ls"}},
		{"`ls -l` of %d VMs", "ls-l-%d", []string{"ls", "-l"}},
		{"`find` over %d VMs", "find-%d", []string{"find"}},
	} {
		list := func(dir string) func() time.Duration {
			return command(b.T, c.argv[0], append(c.argv[1:], dir)...)
		}
		var x, y time.Duration
		d.profiled(b.T, fmt.Sprintf(c.profile, count), func() {
			x, y = compare(list(d.path()), list(filepath.Join(bare.mount, "vms")))
		})
		b.times(fmt.Sprintf(c.what, count), x, y, "≤ 1.0x")
	}
	if count == 10_000 {
		b.row("RSS half a minute after that, 10,000 stopped", d.quietMemory(b.T),
			memory(b.T, bare.cmd.Process.Pid), "≤ 50 MB")
	}
	return d
}

// quietMemory returns the daemon's memory half a minute after a burst of work.
func (d *daemon) quietMemory(t *testing.T) figure {
	time.Sleep(30 * time.Second)
	return memory(t, d.cmd.Process.Pid)
}

// share returns the daemon's CPU for a while.
func (d *daemon) share(t *testing.T, window time.Duration) figure {
	begun := cpu(t, d.cmd.Process.Pid)
	time.Sleep(window)
	return coreShare(cpu(t, d.cmd.Process.Pid)-begun, window)
}

// benchWatched reads the stats of all VMs every eight seconds through descriptors that it keeps, as
// a monitor does, and measures the daemon's CPU.
func benchWatched(b *bench, d *daemon, count int, aim string) {
	fds := make([]int, count)
	for n := range fds {
		var err error
		fds[n], err = unix.Open(d.path(vmName(n), "stats"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(b.T, err)
		defer unix.Close(fds[n])
	}
	const period = 8 * time.Second
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		buf := make([]byte, 4096)
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			for _, fd := range fds {
				if _, err := unix.Pread(fd, buf, 0); err != nil && err != unix.EINTR {
					b.Error(err)
				}
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	time.Sleep(2 * period)
	var share figure
	d.profiled(b.T, fmt.Sprintf("watched-%d", count), func() { share = d.share(b.T, 3*period) })
	close(stop)
	<-stopped
	b.row(fmt.Sprintf("CPU with the `stats` of %d VMs being watched", count), share, nothing, aim)
}

// benchHung reads the stats of 500 healthy VMs one after the other. All VMs are read meanwhile,
// first while the guests of the 500 others hang and then while those are healthy too.
func benchHung(b *bench) {
	const count = 1000
	d := testDaemon(b, "fake")
	others := func(do func(vm string)) { together(0, count/2, func(n int) { do(vmName(2*n + 1)) }) }
	together(0, count, func(n int) {
		hung := ""
		if n%2 == 1 {
			hung = "fake.agent=deaf:1s-1h" // answers for a second
		}
		d.makeVM(b.T, vmName(n), hung)
	})
	d.command(b.T, 0, count, "start")
	p99 := func() time.Duration {
		buf := make([]byte, 4096)
		var all []time.Duration
		for range 20 {
			for n := 0; n < count; n += 2 {
				all = append(all, took(func() { readAll(b.T, d.path(vmName(n), "stats"), buf) }))
			}
		}
		slices.Sort(all)
		return all[len(all)*99/100]
	}
	measure := func() time.Duration {
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				others(func(vm string) {
					select {
					case <-stop:
					default:
						// Succeeds without the figures of a guest that hangs.
						_, _ = read(d.path(vm, "stats"))
					}
				})
				select {
				case <-stop:
					return
				case <-time.After(time.Second):
				}
			}
		}()
		time.Sleep(8 * time.Second)
		p := p99()
		close(stop)
		<-stopped
		return p
	}
	hung := measure()
	others(func(vm string) {
		for _, x := range [][2]string{{"state", "kill"}, {"cmdline", ""}, {"state", "start"}} {
			if err := write(d.path(vm, x[0]), x[1]); err != nil {
				b.Error(err)
			}
		}
	})
	b.times("p99 of a healthy VM's `stats`, half of 1,000 guests hung", hung, measure(), "≤ 1.2x")
}
