package collector

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
	stat := fmt.Sprintf("%d (a b) R 1 1 1 0 -1 0 0 0 0 0 %d 0 0 0 20 0 5 0 %d 100 7 0\n", pid, ticks, start)
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o644),
		os.WriteFile(filepath.Join(dir, "statm"), []byte("20 7 1 0 0 0 0\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func TestParseProcStat(t *testing.T) {
	p, err := parseProcStat([]byte(statFixture))
	if want := (procStat{'S', 1234, 567, 987654}); err != nil || p != want {
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

func FuzzParseStatm(f *testing.F) {
	f.Add([]byte("20 7 1 0 0 0 0\n"))
	f.Add([]byte("-1 99999999999999999999"))
	f.Fuzz(func(t *testing.T, b []byte) {
		size, resident, err := parseStatm(b)
		if err == nil && (size*65536 < 0 && size < 1<<47 || size < 0 || resident < 0) {
			t.Fatal(size, resident)
		}
	})
}

func FuzzParseCounter(f *testing.F) {
	f.Add([]byte("18446744073709551615\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, ok := parseCounter(b); ok && strings.TrimLeft(string(bytes.TrimSpace(b)), "0") != strings.TrimLeft(strconv.FormatUint(n, 10), "0") {
			t.Fatalf("%q is %d", b, n)
		}
	})
}

func TestReadProcess(t *testing.T) {
	root := t.TempDir()
	writeProc(t, root, 42, 1000, 50)
	if _, err := readProcess(root, vmm.Process{PID: 42, StartTime: 1000}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []vmm.Process{{PID: 42, StartTime: 1001}, {PID: 43, StartTime: 1000}} {
		if _, err := readProcess(root, p); !errors.Is(err, errProcessGone) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	self, err := parseProcStat(b)
	if err != nil {
		t.Fatal(err)
	}
	f, err := readProcess("/proc", vmm.Process{PID: os.Getpid(), StartTime: self.startTime})
	if err != nil || f.rss <= 0 || f.vsz < f.rss {
		t.Fatalf("%+v %v", f, err)
	}
}

func TestSampler(t *testing.T) {
	var s sampler
	p := vmm.Process{PID: 1, StartTime: 5}
	at := time.Unix(1790000000, 0)
	if s.sample(p, 100, at) != nil {
		t.Fatal("a percentage from one reading")
	}
	if got := s.sample(p, 150, at.Add(time.Second)); got == nil || *got != 50 {
		t.Fatal(got)
	}
	if got := s.sample(p, 250, at.Add(time.Second+time.Millisecond)); *got != 50 {
		t.Fatal("computed over a millisecond")
	}
	if got := s.sample(p, 350, at.Add(2*time.Second)); *got != 200 {
		t.Fatal(*got)
	}
	if s.sample(vmm.Process{PID: 1, StartTime: 6}, 400, at.Add(3*time.Second)) != nil {
		t.Fatal("compared two processes")
	}
}
