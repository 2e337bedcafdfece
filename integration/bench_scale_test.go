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

func mib(n int) string { return fmt.Sprintf("%d MiB", n>>20) }

// together has 16 workers do something with each of the numbers from to to.
func together(from, to int, do func(n int)) {
	var next atomic.Int64
	next.Store(int64(from))
	each(16, 16, func() {
		for n := int(next.Add(1)) - 1; n < to; n = int(next.Add(1)) - 1 {
			do(n)
		}
	})
}

func vmName(n int) string { return fmt.Sprintf("v%d", n) }

// command gives the VMs from to to the same command.
func (d *daemon) command(t *testing.T, from, to int, word string) {
	together(from, to, func(n int) {
		if err := write(d.path(vmName(n), "state"), word); err != nil {
			t.Error(err)
		}
	})
}

// reportScale looks at 1,000 and 10,000 VMs, at rest and at work.
func reportScale(t *testing.T) []line {
	d := testDaemon(t, "fake")
	var lines []line
	made := 0
	for _, count := range []int{1000, 10000} {
		together(made, count, func(n int) { d.makeVM(t, vmName(n), "") })
		made = count
		lines = append(lines, reportListing(t, d, count)...)
		d.command(t, 0, count, "start")
		if count == 1000 {
			time.Sleep(15 * time.Second) // what was read goes cold
			lines = append(lines, line{"CPU with 1,000 running, nobody looking", d.share(t, 20*time.Second), "", "", "≤ 0.2 %"})
		} else {
			command(t, "find", d.path())()
			lines = append(lines, line{"RSS half a minute after `find`, 10,000 running", mib(d.quietMemory(t)), "", "", "≤ 120 MB"})
		}
		aim := "≤ 2 %"
		if count == 10000 {
			aim = "≤ 20 %"
		}
		lines = append(lines, line{fmt.Sprintf("CPU with the `stats` of %d VMs being watched", count), reportWatched(t, d, count), "", "", aim})
		if count == 10000 {
			lines = append(lines, reportWhole(t, d)...)
		}
		d.command(t, 0, count, "kill")
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

// reportListing lists the VMs beside a bare tree of the same shape.
func reportListing(t *testing.T, d *daemon, count int) []line {
	bare := startBare(t, count, 400)
	defer bare.stop()
	ours, floor := d.path(), filepath.Join(bare.mount, "vms")
	var lines []line
	for _, c := range []struct {
		what, profile string
		argv          []string
	}{
		{"`ls` of %d VMs", "ls-%d", []string{"ls"}},
		{"`ls -l` of %d VMs", "ls-l-%d", []string{"ls", "-l"}},
		{"`find` over %d VMs", "find-%d", []string{"find"}},
	} {
		var a, b time.Duration
		d.profiled(t, fmt.Sprintf(c.profile, count), func() {
			a, b = compare(command(t, c.argv[0], append(c.argv[1:], ours)...),
				command(t, c.argv[0], append(c.argv[1:], floor)...))
		})
		lines = append(lines, against(fmt.Sprintf(c.what, count), a, b, "≤ 1.0x"))
	}
	if count == 10000 {
		a, b := d.quietMemory(t), memory(t, bare.cmd.Process.Pid)
		lines = append(lines, line{"RSS half a minute after that, 10,000 stopped", mib(a), mib(b), fmt.Sprintf("%.2fx", float64(a)/float64(b)), "≤ 50 MB"})
	}
	return lines
}

// quietMemory is what the daemon holds when it has had time to give back what a burst left.
func (d *daemon) quietMemory(t *testing.T) int {
	time.Sleep(30 * time.Second)
	return memory(t, d.cmd.Process.Pid)
}

// share measures the daemon's CPU for a while.
func (d *daemon) share(t *testing.T, window time.Duration) string {
	before := cpu(t, d.cmd.Process.Pid)
	time.Sleep(window)
	return fmt.Sprintf("%.2f %% of a core", 100*(cpu(t, d.cmd.Process.Pid)-before).Seconds()/window.Seconds())
}

// reportWatched reads the stats of all VMs every eight seconds, as a monitor does, through descriptors that it keeps, and measures the daemon's CPU.
func reportWatched(t *testing.T, d *daemon, count int) string {
	fds := make([]int, count)
	for n := range fds {
		var err error
		if fds[n], err = unix.Open(d.path(vmName(n), "stats"), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
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
					t.Error(err)
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
	var share string
	d.profiled(t, fmt.Sprintf("watched-%d", count), func() { share = d.share(t, 3*period) })
	close(stop)
	<-stopped
	return share
}

// reportWhole reads the files that show all VMs.
func reportWhole(t *testing.T, d *daemon) []line {
	var lines []line
	buf := make([]byte, 1<<20)
	for _, file := range []struct{ name, aim string }{{"list", "≤ 20 ms"}, {"metrics", "≤ 150 ms"}} {
		whole := func() time.Duration {
			return took(func() { readAll(t, filepath.Join(d.mount, file.name), buf) })
		}
		var a time.Duration
		d.profiled(t, file.name, func() {
			a, _ = compare(whole, func() time.Duration { return 0 })
		})
		lines = append(lines, line{"one read of `" + file.name + "`, 10,000 running", a.Round(time.Millisecond / 10).String(), "", "", file.aim})
	}
	return lines
}

// reportHung reads the stats of healthy VMs one after the other while nobody hangs, and while as many others do and are read too.
func reportHung(t *testing.T) []line {
	d := testDaemon(t, "fake")
	const count = 1000
	together(0, count, func(n int) {
		hung := ""
		if n%2 == 1 {
			hung = "fake.agent=deaf:1s-1h"
		}
		d.makeVM(t, vmName(n), hung)
	})
	p99 := func() time.Duration {
		buf := make([]byte, 4096)
		var all []time.Duration
		for range 20 {
			for n := 0; n < count; n += 2 {
				all = append(all, took(func() { readAll(t, d.path(vmName(n), "stats"), buf) }))
			}
		}
		slices.Sort(all)
		return all[len(all)*99/100]
	}
	look := func(from int, stop <-chan struct{}) <-chan struct{} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				together(0, count/2, func(n int) {
					select {
					case <-stop:
					default:
						_, _ = read(d.path(vmName(2*n+from), "stats")) // a guest that hangs is left out of it
					}
				})
				select {
				case <-stop:
					return
				case <-time.After(time.Second):
				}
			}
		}()
		return done
	}
	d.command(t, 0, count, "start")
	// The odd ones answer for a second: both sides are measured with all of them read.
	measure := func(others int) time.Duration {
		stop := make(chan struct{})
		done := look(others, stop)
		time.Sleep(8 * time.Second)
		p := p99()
		close(stop)
		<-done
		return p
	}
	hung := measure(1)
	for n := 1; n < count; n += 2 {
		if err := write(d.path(vmName(n), "state"), "kill"); err != nil {
			t.Fatal(err)
		}
		if err := write(d.path(vmName(n), "cmdline"), ""); err != nil {
			t.Fatal(err)
		}
	}
	together(0, count/2, func(n int) {
		if err := write(d.path(vmName(2*n+1), "state"), "start"); err != nil {
			t.Error(err)
		}
	})
	well := measure(1)
	return []line{against("p99 of a healthy VM's `stats`, half of 1,000 guests hung", hung, well, "≤ 1.2x")}
}
