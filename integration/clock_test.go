package integration

import (
	"archive/tar"
	"io"
	"math"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const day = 24 * 60 * 60

// slack bounds the seconds between a read of the clock and the reads of the VMs in an emulated
// guest.
const slack = 4

// clockSample is one line `sample` of testdata/clock.sh.
type clockSample struct {
	phase      string
	mono, wall float64           // before the VMs were looked at
	states     map[string]string // of idle, kept and oldidle
	after      float64           // the monotonic time then
	stats      map[string]map[string]float64
}

// clockLog is what testdata/clock.sh printed.
type clockLog struct {
	samples []clockSample
	jumped  map[string]float64            // by phase: when
	used    map[string]map[string]float64 // by phase and VM: when last before the jump
	bursts  map[string][3]float64         // by phase: how many different answers, from, until
}

func parseClock(t *testing.T, console string) *clockLog {
	t.Helper()
	number := func(s string) float64 {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatalf("%q is no number in:\n%s", s, console)
		}
		return f
	}
	l := &clockLog{jumped: map[string]float64{}, bursts: map[string][3]float64{},
		used: map[string]map[string]float64{}}
	for _, line := range strings.Split(console, "\n") {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		switch f[0] {
		case "jumped":
			l.jumped[f[1]] = number(f[2])
		case "burst":
			l.bursts[f[1]] = [3]float64{number(f[2]), number(f[3]), number(f[4])}
		case "used":
			if l.used[f[1]] == nil {
				l.used[f[1]] = map[string]float64{}
			}
			if _, after := l.jumped[f[1]]; !after {
				l.used[f[1]][f[2]] = number(f[3])
			}
		case "sample":
			parts := strings.Split(line, " / ")
			if len(parts) != 5 {
				t.Fatalf("a sample has %d parts: %s", len(parts), line)
			}
			head, states := strings.Fields(parts[0]), strings.Fields(parts[1])
			if len(states) != 4 {
				t.Fatalf("a sample has %d states: %s", len(states), line)
			}
			s := clockSample{phase: head[1], mono: number(head[2]), wall: number(head[3]),
				after: number(states[3]), stats: map[string]map[string]float64{}}
			s.states = map[string]string{"idle": states[0], "kept": states[1], "oldidle": states[2]}
			for i, vm := range []string{"new", "old"} {
				s.stats[vm] = map[string]float64{}
				pairs := strings.Fields(parts[2+i])
				for j := 0; j+1 < len(pairs); j += 2 {
					if pairs[j] != "state" {
						s.stats[vm][pairs[j]] = number(pairs[j+1])
					}
				}
			}
			// NAME STATE HEALTH CPU RSS ADDRESS UPTIME IMAGE
			if columns := strings.Fields(parts[4]); len(columns) == 8 {
				s.stats["list"] = map[string]float64{"uptime": number(columns[6])}
			} else {
				t.Fatalf("list has %d columns: %s", len(columns), line)
			}
			l.samples = append(l.samples, s)
		}
	}
	return l
}

// TestClock sets the clock of a host a day forward and a day back. The host is a real guest, in
// which bangerd runs fake VMs.
func TestClock(t *testing.T) {
	t.Parallel()
	needRealVMs(t)
	script, err := os.ReadFile("testdata/clock.sh")
	must(t, err)
	d := testDaemon(t, "qemu")
	d.addImageWith(t, "clock", 512<<20, map[string][]byte{
		"clock": script, "fuse.ko": kernelModule(t, "fuse.ko"),
		"bangerd": buildStatic(t, "./cmd/bangerd"),
	})
	must(t, os.Mkdir(d.path("host"), 0o755))
	must(t, write(d.path("host", "config"), "image clock\nmemory 512M\nnet user"))
	must(t, write(d.path("host", "state"), "start"))
	terminal := openTerminal(t, d, "host")
	end := time.Now().Add(3 * time.Minute)
	for ; !strings.Contains(terminal.String(), "clock done"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the guest does not come to its end:\n%s", terminal)
		}
	}
	console := terminal.String()
	l := parseClock(t, console)
	for _, phase := range []string{"forward", "back"} {
		t.Run(phase, func(t *testing.T) {
			l.check(t, phase)
		})
	}
	if t.Failed() {
		t.Logf("the guest printed:\n%s", console)
	}
}

// check judges what was seen after one jump. Each complaint is made once.
func (l *clockLog) check(t *testing.T, phase string) {
	jumped, ok := l.jumped[phase]
	if !ok {
		t.Fatal("the clock has not jumped")
	}
	var before *clockSample
	var after []clockSample
	for i, s := range l.samples {
		switch s.phase {
		case phase + "-before":
			before = &l.samples[i]
		case phase:
			after = append(after, s)
		}
	}
	if before == nil || len(after) < 5 {
		t.Fatalf("there are only %d samples", len(after))
	}
	if off := math.Abs(after[0].wall-before.wall) - day; math.Abs(off) > 30 {
		t.Fatalf("the clock has jumped by %v s", after[0].wall-before.wall)
	}

	// Captures are cached for a second of the monotonic clock. The poller renews twice a second.
	burst := l.bursts[phase]
	if most := 2 + (burst[2]-burst[1])/0.4; burst[0] < 1 || burst[0] > most {
		t.Errorf("20 reads in %.2f s gave %v different answers", burst[2]-burst[1], burst[0])
	}
	stale := slices.IndexFunc(after, func(s clockSample) bool {
		return s.mono > jumped+slack && math.Abs(s.wall-s.stats["new"]["collected"]) > slack
	})
	if stale >= 0 {
		s := after[stale]
		t.Errorf("%.2f s after the jump, at %v, stats is of %v",
			s.mono-jumped, s.wall, s.stats["new"]["collected"])
	}

	for _, vm := range []string{"new", "old", "list"} {
		for _, s := range after {
			grown, passed := s.stats[vm]["uptime"]-before.stats[vm]["uptime"], s.mono-before.mono
			if math.Abs(grown-passed) > slack {
				t.Errorf("uptime of %s has grown by %.2f s in %.2f s", vm, grown, passed)
				break
			}
		}
		for _, s := range after {
			if cpu, ok := s.stats[vm]["cpu_percent"]; ok && (cpu < 0 || cpu > 400) {
				t.Errorf("cpu_percent of %s is %v", vm, cpu)
				break
			}
		}
	}

	for vm, timeout := range map[string]float64{"idle": 5, "oldidle": 15, "kept": math.Inf(1)} {
		used := l.used[phase][vm]
		for _, s := range after {
			running := s.states[vm] == "running"
			if !running && s.after < used+timeout {
				t.Errorf("%s, with an idle_timeout of %v s, is %s %.2f s after its last use",
					vm, timeout, s.states[vm], s.after-used)
				break
			}
			if running && s.mono > used+timeout+slack {
				t.Errorf("%s, with an idle_timeout of %v s, still runs %.2f s after its last use",
					vm, timeout, s.mono-used)
				break
			}
		}
	}
	last := after[len(after)-1]
	t.Logf("%d samples in %.1f s; 20 reads in %.2f s with %v answers; last uptimes: new %v, old %v",
		len(after), last.mono-jumped, burst[2]-burst[1], burst[0],
		last.stats["new"]["uptime"], last.stats["old"]["uptime"])
}

// kernelModule returns a module from the package of the built-in image's kernel.
func kernelModule(t *testing.T, name string) []byte {
	t.Helper()
	packages, err := filepath.Glob(filepath.Join(module, ".cache/image/kernel/linux-image-*.deb"))
	if err != nil || len(packages) != 1 {
		t.Skip("make image")
	}
	cmd := exec.Command("dpkg-deb", "--fsys-tarfile", packages[0])
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill() // it need not write the rest
		_ = cmd.Wait()
	}()
	for files := tar.NewReader(out); ; {
		h, err := files.Next()
		if err != nil {
			t.Fatalf("no %s in %s: %v", name, packages[0], err)
		}
		if path.Base(h.Name) == name {
			b, err := io.ReadAll(files)
			must(t, err)
			return b
		}
	}
}
