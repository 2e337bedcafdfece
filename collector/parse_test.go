package collector

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"banger/vmm"
)

const statFixture = "4242 (qemu) system) S 1 4242 4242 0 -1 4194560 39467 0 21 0 1234 567 0 0 20 0 5 0 987654 1073741824 48000 18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0\n"

// writeProc writes what the kernel would show of one process.
func writeProc(t *testing.T, root string, pid int, start, ticks uint64) {
	t.Helper()
	dir := filepath.Join(root, strconv.Itoa(pid))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	stat := fmt.Sprintf("%d (a b) R 1 1 1 0 -1 0 0 0 0 0 %d 0 0 0 20 0 5 0 %d 81920 7 0\n", pid, ticks, start)
	if err := os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestParseProcStat(t *testing.T) {
	p, err := parseProcStat([]byte(statFixture))
	if want := (procStat{'S', 1234, 567, 987654, 1073741824, 48000}); err != nil || p != want {
		t.Fatalf("%+v %v", p, err)
	}
	for _, bad := range []string{"", "1", "1 (x) S", "1 (x", "1 (x) S 1 4242 4242 0 -1 4194560 39467 0 21 0 -1234 567 0 0 20 0 5 0 987654 0"} {
		if _, err := parseProcStat([]byte(bad)); err == nil {
			t.Errorf("%q was understood", bad)
		}
	}
}

func FuzzParseProcStat(f *testing.F) {
	f.Add([]byte(statFixture))
	f.Add([]byte("1 () Z"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseProcStat(b)
		if err != nil && p != (procStat{}) || err == nil && !bytes.Contains(b, []byte{')'}) {
			t.Fatalf("%q is %+v, %v", b, p, err)
		}
	})
}

func TestKeptProcess(t *testing.T) {
	c, clock, v, _ := newTest(t)
	c.proc = t.TempDir()
	writeProc(t, c.proc, 42, 1000, 50)
	p := vmm.Process{PID: 42, StartTime: 1000}
	e, err := c.entry(v)
	if err != nil {
		t.Fatal(err)
	}
	of := func(p vmm.Process, young bool) *procFiles {
		t.Helper()
		f, done, err := e.process.of(c, p, young)
		if err != nil {
			t.Fatal(err)
		}
		done()
		return f
	}
	first := of(p, true)
	if of(p, false) != first || c.kept.Load() != 1 {
		t.Errorf("the files are opened anew, %d kept", c.kept.Load())
	}
	clock.advance(keepGroup)
	second := of(p, true)
	if _, err := first.stat.Stat(); second == first || err == nil || c.kept.Load() != 1 {
		t.Errorf("old files are kept: %v, %d kept", err, c.kept.Load())
	}
	// The pid is another's now.
	writeProc(t, c.proc, 42, 2000, 0)
	if _, err := second.read(); !errors.Is(err, errProcessGone) {
		t.Error(err)
	}
	of(vmm.Process{PID: 42, StartTime: 2000}, true)
	e.process.drop(c, false)
	c.mostKept = 0
	if of(vmm.Process{PID: 42, StartTime: 2000}, true); e.process.files != nil || c.kept.Load() != 0 {
		t.Errorf("more are kept than may be: %d", c.kept.Load())
	}
	c.mostKept = 1
	of(vmm.Process{PID: 42, StartTime: 2000}, true)
	c.forget(7)
	if of(vmm.Process{PID: 42, StartTime: 2000}, true); c.kept.Load() != 0 {
		t.Error("files are kept of a VM that was removed")
	}
}

func TestReadProcess(t *testing.T) {
	root := t.TempDir()
	writeProc(t, root, 42, 1000, 50)
	f, err := openProcess(root, vmm.Process{PID: 42, StartTime: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	for _, p := range []vmm.Process{{PID: 42, StartTime: 1001}, {PID: 43, StartTime: 1000}} {
		if _, err := openProcess(root, p); !errors.Is(err, errProcessGone) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	st := statOf(t, os.Getpid())
	self, err := openProcess("/proc", vmm.Process{PID: os.Getpid(), StartTime: st.startTime})
	if err != nil {
		t.Fatal(err)
	}
	defer self.close()
	if f, err := self.read(); err != nil || f.rss <= 0 || f.vsz < f.rss {
		t.Errorf("%+v %v", f, err)
	}
	// One that has ended is gone, though its files are kept.
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	st = statOf(t, cmd.Process.Pid)
	sleeper, err := openProcess("/proc", vmm.Process{PID: cmd.Process.Pid, StartTime: st.startTime})
	if err != nil {
		t.Fatal(err)
	}
	defer sleeper.close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed
	if _, err := sleeper.read(); !errors.Is(err, errProcessGone) {
		t.Errorf("a process that has ended: %v", err)
	}
}

func TestSampler(t *testing.T) {
	var s sampler
	p := vmm.Process{PID: 1, StartTime: 5}
	at := time.Unix(1790000000, 0)
	if s.sample(p, 100, at) != nil {
		t.Fatal("a percentage from one reading")
	}
	if got := s.sample(p, 150, at.Add(time.Second)); got == nil || *got != (cpuShare{50, at, at.Add(time.Second)}) {
		t.Fatal(got)
	}
	if got := s.sample(p, 250, at.Add(time.Second+time.Millisecond)); got.percent != 50 {
		t.Fatal("computed over a millisecond")
	}
	if got := s.sample(p, 350, at.Add(2*time.Second)); *got != (cpuShare{200, at.Add(time.Second), at.Add(2 * time.Second)}) {
		t.Fatal(*got)
	}
	if s.sample(vmm.Process{PID: 1, StartTime: 6}, 400, at.Add(3*time.Second)) != nil {
		t.Fatal("compared two processes")
	}
}

// statOf returns the figures of a process that lives.
func statOf(tb testing.TB, pid int) procStat {
	tb.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		tb.Fatal(err)
	}
	st, err := parseProcStat(b)
	if err != nil {
		tb.Fatal(err)
	}
	return st
}
