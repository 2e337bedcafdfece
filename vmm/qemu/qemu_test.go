package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/vmm"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// bench holds a VM's directory, a driver and the notices of its machines.
type bench struct {
	*Driver
	spec    *vmm.Spec
	notices chan vmm.Notice
	log     *bytes.Buffer
}

// testUID belongs to nobody.
const testUID = 1879048192 + 999_999

// loopKernel returns a multiboot kernel (Multiboot Specification 0.6.96) that only halts.
func loopKernel() []byte {
	const magic, flags, load = 0x1badb002, 0x10000, 0x100000
	sum := uint32(0)
	sum -= magic + flags
	var b []byte
	for _, n := range []uint32{magic, flags, sum, load, load, 0, 0, load + 32} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	b = append(b, 0xfa, 0xf4, 0xeb, 0xfd) // cli; 1: hlt; jmp 1b
	return append(b, make([]byte, 8192)...)
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no QEMU: apt-get install qemu-system-x86")
	}
	d, err := New(Options{Accel: "tcg"})
	if err != nil {
		t.Fatal(err)
	}
	// Longer than a socket's address, as a state directory may be.
	state := filepath.Join(t.TempDir(), strings.Repeat("long,", 20))
	id := uuid.NewString()
	dir := filepath.Join(state, "vms", id)
	if err := os.MkdirAll(vmm.DisksDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(state, "kernel")
	if err := os.WriteFile(kernel, loopKernel(), 0o644); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, vmm.LogFile)
	file, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{Driver: d, notices: make(chan vmm.Notice, 64), log: new(bytes.Buffer)}
	b.spec = &vmm.Spec{
		Serial: 1, ID: id, Name: "test", StateDir: state, Dir: dir, UID: -1, GID: -1,
		Config: vmm.Config{CPUs: 1, Memory: 32 << 20}, Image: vmm.Image{Kernel: kernel},
		NIC: vmm.NIC{Mode: vmm.NetNone}, Log: b.log, LogFile: file,
	}
	t.Cleanup(func() {
		b.sweep(t, state, false)
		file.Close()
		if n := b.processes(); n != 0 {
			t.Errorf("%d processes left", n)
		}
	})
	return b
}

// runAsOther makes testUID the VM's user.
func (b *bench) runAsOther(t *testing.T) {
	t.Helper()
	b.spec.UID, b.spec.GID = testUID, testUID
	if err := os.Chown(vmm.DisksDir(b.spec.Dir), testUID, testUID); err != nil {
		t.Fatal(err)
	}
}

// sweep ends the machines of a state directory, or keeps them all.
func (b *bench) sweep(t *testing.T, stateDir string, keep bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := b.Sweep(ctx, stateDir, func(string) bool { return keep }); err != nil {
		t.Error(err)
	}
}

func (b *bench) notify(n vmm.Notice) { b.notices <- n }

func (b *bench) start(t *testing.T) *Machine {
	t.Helper()
	m, err := b.Start(within(t, 60*time.Second), b.spec, b.notify)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m.(*Machine)
}

func (b *bench) adopt(t *testing.T, proc vmm.Process) *Machine {
	t.Helper()
	other, err := New(Options{Accel: "tcg"})
	if err != nil {
		t.Fatal(err)
	}
	m, err := other.Adopt(within(t, 60*time.Second), b.spec, proc, b.notify)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m.(*Machine)
}

// processes counts the living QEMUs of the bench.
func (b *bench) processes() int {
	n := 0
	for _, pid := range pids() {
		if id, _ := readCommandLine(pid); id == b.spec.ID {
			n++
		}
	}
	return n
}

func (b *bench) sockets() (found []string) {
	for _, s := range socketNames {
		if _, err := os.Lstat(filepath.Join(b.spec.Dir, s)); err == nil {
			found = append(found, s)
		}
	}
	return found
}

func (b *bench) exit(t *testing.T, m *Machine) vmm.Exit {
	t.Helper()
	for {
		select {
		case n := <-b.notices:
			if n.Kind != vmm.NoticeExited {
				continue
			}
			select {
			case <-m.Done():
			default:
				t.Error("a notice of the exit before Done")
			}
			return m.Exit()
		case <-within(t, 30*time.Second).Done():
			t.Fatal("no notice of the exit")
		}
	}
}

func TestLife(t *testing.T) {
	b := newBench(t)
	base := filepath.Join(b.spec.Dir, "base,=.img")
	if err := os.WriteFile(base, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	work := vmm.DiskPath(b.spec.Dir, vmm.DiskWork)
	b.spec.Disks = []vmm.Disk{
		{Path: work, Format: qcow2, Size: 8 << 20}, overlayDisk(b.spec.Dir, base, "raw"),
	}
	b.spec.NIC = vmm.NIC{Mode: vmm.NetUser, MAC: "02:00:00:00:00:07"}
	ctx := within(t, 30*time.Second)
	if err := b.MakeDisks(ctx, b.spec); err != nil {
		t.Fatal(err)
	}
	m := b.start(t)
	header, err := os.ReadFile(b.spec.Disks[1].Path)
	if err != nil || !bytes.HasPrefix(header, []byte("QFI\xfb")) {
		t.Errorf("the overlay begins with %.4q: %v", header, err)
	}
	if !strings.Contains(b.log.String(), "-uuid "+b.spec.ID) {
		t.Errorf("log: %s", b.log)
	}
	if sid, err := unix.Getsid(m.Process().PID); err != nil || sid != m.Process().PID {
		t.Errorf("session %d, %v", sid, err)
	}
	if err := m.Pause(ctx); err != nil || !m.Paused() {
		t.Errorf("pause: %v", err)
	}
	if s, err := m.status(ctx); s != "paused" || err != nil {
		t.Errorf("status %s, %v", s, err)
	}
	if err := m.Resume(ctx); err != nil || m.Paused() {
		t.Errorf("resume: %v", err)
	}
	if _, err := m.BlockStats(ctx); err != nil {
		t.Error(err)
	}
	liveSnapshots(t, ctx, b, m)
	short := within(t, 50*time.Millisecond)
	if _, err := m.Guest().Ping(short); !errors.Is(err, vmm.ErrTimeout) {
		t.Errorf("ping of a guest without an agent: %v", err)
	}
	if err := m.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if e := b.exit(t, m); e.Orderly || e.Reason != "killed" {
		t.Errorf("%+v", e)
	}
	if s := b.sockets(); s != nil {
		t.Errorf("left: %q", s)
	}
	if err := m.Pause(ctx); !errors.Is(err, vmm.ErrNotRunning) {
		t.Errorf("pause of a dead machine: %v", err)
	}
}

var starts = flag.Int("starts", 20, "how many machines TestManyStarts starts")

// TestManyStarts looks for a race between QEMU's two threads. With a monitor that does not wait
// for its client, about one start of a thousand failed.
func TestManyStarts(t *testing.T) {
	b := newBench(t)
	b.spec.Config.Cmdline = "quiet"
	for i := range *starts {
		m, err := b.Start(within(t, 30*time.Second), b.spec, b.notify)
		if err != nil {
			t.Fatalf("start %d: %v", i, err)
		}
		if err := m.Kill(within(t, 30*time.Second)); err != nil {
			t.Fatal(err)
		}
		b.exit(t, m.(*Machine))
		m.Close()
	}
}

func TestKilledFromOutside(t *testing.T) {
	b := newBench(t)
	m := b.start(t)
	if err := unix.Kill(m.Process().PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	const want = "killed KILL: the VMM was killed by signal 9 (SIGKILL)"
	if e := b.exit(t, m); e.Orderly || e.String() != want {
		t.Errorf("%+v", e)
	}
}

func TestAdopt(t *testing.T) {
	b := newBench(t)
	first := b.start(t)
	ctx := within(t, 60*time.Second)
	if err := first.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	proc := first.Process()
	first.Close()
	second := b.adopt(t, proc)
	if second.Process() != proc || !second.Paused() || second.Accel() != "tcg" {
		t.Errorf("adopted %+v, paused %v, %s", second.Process(), second.Paused(), second.Accel())
	}
	second.Close()
	third := b.adopt(t, vmm.Process{}) // by its UUID
	if err := third.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	third.Close()
	fourth := b.adopt(t, vmm.Process{PID: proc.PID, StartTime: proc.StartTime + 1})
	if fourth.Paused() {
		t.Error("paused")
	}
	if err := fourth.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	b.exit(t, fourth)
	if _, err := b.Adopt(ctx, b.spec, proc, b.notify); !errors.Is(err, vmm.ErrNotFound) {
		t.Errorf("adopted the dead: %v", err)
	}
}

func TestStoppedProcessHangsNobody(t *testing.T) {
	b := newBench(t)
	m := b.start(t)
	if err := unix.Kill(m.Process().PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := m.Pause(within(t, 50*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("pause: %v", err)
	}
	if err := m.Kill(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	b.exit(t, m)

	m = b.start(t)
	if err := unix.Kill(m.Process().PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	m.Close()
	_, err := b.Adopt(within(t, 30*time.Second), b.spec, m.Process(), b.notify)
	if err == nil || errors.Is(err, vmm.ErrNotFound) {
		t.Errorf("adopt: %v", err)
	}
	if n := b.processes(); n != 0 {
		t.Errorf("%d processes left", n)
	}
}

func TestStartRefused(t *testing.T) {
	b := newBench(t)
	good := b.spec.Image.Kernel
	bad := filepath.Join(b.spec.StateDir, "bad")
	if err := os.WriteFile(bad, []byte("no kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ kernel, machine, want string }{
		{"/nonexistent/kernel", "microvm", "/nonexistent/kernel"},
		{bad, "q35", "invalid kernel header"},       // QEMU's own words, once it makes the machine
		{good, "none-such", "Use -machine help to"}, // and before
	} {
		b.spec.Image.Kernel, b.machine = c.kernel, c.machine
		_, err := b.Start(within(t, 60*time.Second), b.spec, b.notify)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s on %s: %v; want %q", c.kernel, c.machine, err, c.want)
		}
		if n, s := b.processes(), b.sockets(); n != 0 || s != nil {
			t.Errorf("left: %d processes, %q", n, s)
		}
	}
}

// The reason of a start without QEMU's own words is not the command line in the log, which may hold a
// password.
func TestSilentEnd(t *testing.T) {
	b := newBench(t)
	b.binary, b.program = "/bin/true", "/bin/true"
	b.spec.Config.Cmdline, b.spec.Log = "password=hunter2", b.spec.LogFile
	_, err := b.Start(within(t, 30*time.Second), b.spec, b.notify)
	if err == nil || !strings.HasPrefix(err.Error(), "QEMU ended at once") ||
		strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
	log, err := os.ReadFile(b.spec.LogFile.Name())
	if err != nil || !bytes.Contains(log, []byte("hunter2")) {
		t.Errorf("the log lacks the command line: %q, %v", log, err)
	}
}

func TestStartCancelled(t *testing.T) {
	b := newBench(t)
	for _, ms := range []time.Duration{0, 1, 10, 30} {
		after := ms * time.Millisecond
		m, err := b.Start(within(t, after), b.spec, b.notify)
		if err == nil { // faster than the cancellation
			err = m.Kill(within(t, 30*time.Second))
		} else if errors.Is(err, context.DeadlineExceeded) {
			err = nil
		}
		if err != nil {
			t.Errorf("after %v: %v", after, err)
		}
		if n, s := b.processes(), b.sockets(); n != 0 || s != nil {
			t.Errorf("after %v, left: %d processes, %q", after, n, s)
		}
	}
}

func TestUnprivileged(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can drop privileges: sudo go test")
	}
	b := newBench(t)
	b.runAsOther(t)
	m := b.start(t)
	status, err := os.ReadFile("/proc/" + strconv.Itoa(m.Process().PID) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	id := strconv.Itoa(testUID)
	for _, want := range []string{
		"Uid:\t" + strings.Repeat(id+"\t", 3) + id + "\n",
		"Gid:\t" + strings.Repeat(id+"\t", 3) + id + "\n",
		"Groups:\t \n", "CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n",
		"CapInh:\t0000000000000000\n", "CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n",
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
	if err := m.Kill(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	b.exit(t, m)
}

func TestSweep(t *testing.T) {
	b := newBench(t)
	m := b.start(t)
	state, dir := b.spec.StateDir, b.spec.Dir
	for _, c := range []struct {
		dir  string
		keep bool
		left int
	}{{state, true, 1}, {state + "x", false, 1}, {dir[:len(dir)-1], false, 1}, {state, false, 0}} {
		b.sweep(t, c.dir, c.keep)
		if n := b.processes(); n != c.left {
			t.Fatalf("%+v: %d processes", c, n)
		}
	}
	b.exit(t, m)
}

// builtinImage reads the files of vmm/image, which this package does not import.
func builtinImage(t *testing.T) vmm.Image {
	t.Helper()
	dir := filepath.Join("..", "..", ".cache", "image", "builtin")
	text, err := os.ReadFile(filepath.Join(dir, "image.json"))
	if err != nil {
		t.Skipf("no image: make image (%v)", err)
	}
	var m struct {
		Kernel, Initrd, Cmdline string
		Memory                  int64 `json:"memory"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	return vmm.Image{
		Kernel: filepath.Join(dir, m.Kernel), Initrd: filepath.Join(dir, m.Initrd),
		Cmdline: m.Cmdline, Memory: m.Memory,
	}
}

// TestBoot follows a guest from its boot to its own power off, or its panic.
func TestBoot(t *testing.T) {
	img := builtinImage(t)
	for _, machine := range []string{"microvm", "q35"} {
		t.Run(machine, func(t *testing.T) {
			b := newBench(t)
			b.machine = machine
			b.spec.Image, b.spec.Config.Memory = img, img.Memory
			b.spec.NIC = vmm.NIC{Mode: vmm.NetUser, MAC: "02:00:00:00:00:07"}
			m := b.start(t)
			ctx := within(t, 120*time.Second)
			if _, err := m.Guest().Ping(ctx); err != nil {
				t.Fatal(err)
			}
			m.Close()
			m = b.adopt(t, m.Process())
			if _, err := m.Guest().Ping(ctx); err != nil {
				t.Fatal(err)
			}
			r := m.Console().Subscribe()
			defer r.Close()
			if _, err := m.Console().Write(ctx, []byte("echo $((6*7))-$((6*7))\n")); err != nil {
				t.Fatal(err)
			}
			var seen []byte
			buf := make([]byte, 256)
			for !bytes.Contains(seen, []byte("42-42")) {
				n, err := r.Read(ctx, buf)
				if err != nil {
					t.Fatalf("%v after %q", err, seen)
				}
				seen = append(seen, buf[:n]...)
			}
			if err := m.Guest().PowerOff(ctx); err != nil {
				t.Fatal(err)
			}
			if e := b.exit(t, m); !e.Orderly {
				t.Errorf("%+v", e)
			}
			logged, err := os.ReadFile(filepath.Join(b.spec.Dir, vmm.ConsoleFile))
			if err != nil || !bytes.Contains(logged, []byte("42-42")) {
				t.Errorf("console.log has %d bytes, %v", len(logged), err)
			}
		})
	}
	for _, c := range []struct {
		key     string // of sysrq
		orderly bool
		reason  string
	}{{"c", false, "panicked"}, {"b", true, "rebooted"}} {
		t.Run(c.reason, func(t *testing.T) {
			b := newBench(t)
			b.spec.Image, b.spec.Config.Memory = img, img.Memory
			m := b.start(t)
			ctx := within(t, 120*time.Second)
			if _, err := m.Guest().Ping(ctx); err != nil {
				t.Fatal(err)
			}
			typed := []byte("echo " + c.key + " > /proc/sysrq-trigger\n")
			if _, err := m.Console().Write(ctx, typed); err != nil {
				t.Fatal(err)
			}
			if e := b.exit(t, m); e.Orderly != c.orderly || !strings.Contains(e.Reason, c.reason) {
				t.Errorf("%+v", e)
			}
		})
	}
}
