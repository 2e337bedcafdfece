package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/vmm"
)

// libvirtDirs are what libvirtd writes to. The suite's mount namespace shows empty ones instead.
var libvirtDirs = []string{
	"/etc/libvirt", "/run/libvirt", "/var/cache/libvirt", "/var/lib/libvirt", "/var/log/libvirt",
}

// libvirtConfig runs QEMU as root, as banger without uids does, without what needs other services.
var libvirtConfig = map[string]string{
	"/etc/libvirt/libvirtd.conf": "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n",
	"/etc/libvirt/qemu.conf": `user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
security_driver = "none"
stdio_handler = "file"
`,
}

// libvirtDomain is a guest as libvirt composes it: q35, user networking, a serial console.
const libvirtDomain = `<domain type='%s'>
<name>%s</name><memory unit='B'>%d</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type>
<kernel>%s</kernel><initrd>%s</initrd><cmdline>%s</cmdline></os>
<features><acpi/></features><cpu mode='maximum'/>
<devices><emulator>%s</emulator><serial type='file'><source path='%s'/></serial>
<interface type='user'><model type='virtio'/></interface></devices>
</domain>
`

// libvirt is a libvirtd of the test's own.
type libvirt struct {
	cmd *exec.Cmd
	dir string // of consoles
}

// startLibvirt runs libvirtd until the test ends.
func startLibvirt(t *testing.T) *libvirt {
	t.Helper()
	for _, program := range []string{"libvirtd", "virsh"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("apt install libvirt-daemon-system libvirt-clients")
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("libvirtd needs root: sudo make bench")
	}
	for _, dir := range libvirtDirs {
		hideDir(t, dir)
	}
	for path, text := range libvirtConfig {
		must(t, os.WriteFile(path, []byte(text), 0o644))
	}
	l := &libvirt{exec.Command("libvirtd", "--timeout", "0"), t.TempDir()}
	log, err := os.Create(filepath.Join(l.dir, "libvirtd.log"))
	must(t, err)
	defer log.Close()
	l.cmd.Stdout, l.cmd.Stderr = log, log
	must(t, l.cmd.Start())
	t.Cleanup(l.end)
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		out, err := exec.Command("virsh", "-q", "list").CombinedOutput()
		if err == nil {
			return l
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("libvirtd does not serve: %s\n%s", out, text)
		}
	}
}

// hideDir mounts an empty file system over a directory until the test ends.
func hideDir(t *testing.T, dir string) {
	t.Helper()
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		t.Cleanup(func() { _ = os.Remove(dir) })
	} else if !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	must(t, syscall.Mount("banger-bench", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
}

// end kills the guests, then libvirtd, which would leave them running.
func (l *libvirt) end() {
	_ = l.cmd.Process.Signal(syscall.SIGTERM)
	_ = l.cmd.Wait() // the mounts are gone soon
	files, _ := filepath.Glob("/run/libvirt/qemu/*.pid")
	for _, file := range files {
		if pid, err := pidIn(file); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// virsh runs a command of virsh.
func (l *libvirt) virsh(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("virsh", append([]string{"-q"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

func (l *libvirt) console(vm string) string { return filepath.Join(l.dir, vm+".console") }

// define makes a guest that boots the built-in image with the QEMU and the accelerator of a VM.
func (l *libvirt) define(t *testing.T, vm, commandLine string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(builtin(), "image.json"))
	must(t, err)
	var image struct {
		Kernel, Initrd, Cmdline string
		Memory                  int64
	}
	must(t, json.Unmarshal(text, &image))
	kind := "qemu"
	if strings.Contains(commandLine, "-accel kvm") {
		kind = "kvm"
	}
	program, _, _ := strings.Cut(commandLine, " ")
	file := filepath.Join(l.dir, vm+".xml")
	kernel, initrd := filepath.Join(builtin(), image.Kernel), filepath.Join(builtin(), image.Initrd)
	domain := fmt.Appendf(nil, libvirtDomain, kind, vm, image.Memory,
		kernel, initrd, image.Cmdline, program, l.console(vm))
	must(t, os.WriteFile(file, domain, 0o644))
	l.virsh(t, "define", file)
}

// pidIn reads a file that holds a pid.
func pidIn(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// guestReady is what the built-in image's shell prints on the console.
const guestReady = "built-in shell (ash)"

// untilReady calls start. It returns the time of the call, and the time until the console has
// another guestReady.
func untilReady(t *testing.T, console string, start func()) (started, ready time.Duration) {
	t.Helper()
	count := func() int {
		text, _ := os.ReadFile(console) // not there before the first start
		return bytes.Count(text, []byte(guestReady))
	}
	n, begun := count(), time.Now()
	start()
	started = time.Since(begun)
	for count() == n {
		if time.Since(begun) > time.Minute {
			t.Fatalf("the guest of %s is not ready after a minute", console)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return started, time.Since(begun)
}

// benchLibvirt compares ten VMs with ten guests of libvirt: the same image, QEMU and accelerator,
// one started after the other in turns, all at work in the same windows.
func benchLibvirt(b *bench) {
	needRealVMs(b.T)
	const count = 10
	l := startLibvirt(b.T)
	d := realDaemon(b.T)
	bootWeb(b.T, d)
	commandLine := lastCommandLine(b.T, d, "web")
	l.define(b.T, "warm", commandLine)
	untilReady(b.T, l.console("warm"), func() { l.virsh(b.T, "start", "warm") }) // probes QEMU
	l.virsh(b.T, "destroy", "warm")

	var started, ready, libvirtStarted, libvirtReady []time.Duration
	for n := range count {
		vm := vmName(n)
		must(b.T, os.Mkdir(d.path(vm), 0o755))
		must(b.T, write(d.path(vm, "net"), "user"))
		console := d.consoleFile(b.T, vm)
		x, y := untilReady(b.T, console, func() { must(b.T, write(d.path(vm, "state"), "start")) })
		started, ready = append(started, x), append(ready, y)
		l.define(b.T, vm, commandLine)
		x, y = untilReady(b.T, l.console(vm), func() { l.virsh(b.T, "start", vm) })
		libvirtStarted, libvirtReady = append(libvirtStarted, x), append(libvirtReady, y)
	}
	for _, r := range []struct {
		what           string
		ours, libvirts []time.Duration
	}{
		{"start until the write or virsh returns", started, libvirtStarted},
		{"start until the guest's console has its shell", ready, libvirtReady},
	} {
		b.times(r.what+", against libvirt", medianTime(r.ours), medianTime(r.libvirts), "≤ 1.0x")
	}
	b.times("ten starts in a row, against libvirt", sum(ready), sum(libvirtReady), "≤ 1.0x")

	for _, r := range []struct{ what, file, virsh string }{
		{"`cat list`, against `virsh list`", filepath.Join(d.mount, "list"), "list"},
		{"`cat state`, against `virsh domstate`", d.path("v0", "state"), "domstate v0"},
		{"`cat stats`, against `virsh domstats`", d.path("v0", "stats"), "domstats v0"},
	} {
		x, y := compareRounds(21, command(b.T, "cat", r.file),
			command(b.T, "virsh", strings.Fields("-q "+r.virsh)...))
		b.times(r.what, x, y, "≤ 1.0x")
	}

	var ours, libvirts []int // the pids of the guests
	for n := range count {
		pid, err := pidIn(d.path(vmName(n), "pid"))
		must(b.T, err)
		ours = append(ours, pid)
		pid, err = pidIn("/run/libvirt/qemu/" + vmName(n) + ".pid")
		must(b.T, err)
		libvirts = append(libvirts, pid)
	}
	pids := slices.Concat(ours, libvirts, []int{d.cmd.Process.Pid, l.cmd.Process.Pid})
	time.Sleep(settleGuest)
	idle := sideBySide(b.T, time.Minute, pids...)
	b.row("an idle guest, against libvirt's",
		mean(idle[:count]), mean(idle[count:2*count]), "≤ 1.0x")
	var polled []figure
	polling(b.T, d, count, func() {
		d.profiled(b.T, "polled-10", func() { polled = sideBySide(b.T, time.Minute, pids...) })
	})
	b.row("a guest whose stats are read each second, against libvirt's",
		mean(polled[:count]), mean(polled[count:2*count]), "≤ 1.0x")
	b.row("the daemon while ten guests are read each second, against libvirtd",
		polled[2*count], polled[2*count+1], "≤ 1.0x")
}

// consoleFile returns the file that QEMU copies a VM's console to.
func (d *daemon) consoleFile(t *testing.T, vm string) string {
	t.Helper()
	id, err := read(d.path(vm, "id"))
	must(t, err)
	return filepath.Join(d.state, "vms", id, vmm.ConsoleFile)
}

// polling reads the stats of VMs and of libvirt's guests each second while do runs. virsh keeps its
// connection, as the daemon's mount is kept.
func polling(t *testing.T, d *daemon, count int, do func()) {
	t.Helper()
	virsh := exec.Command("virsh", "-q")
	stdin, err := virsh.StdinPipe()
	must(t, err)
	virsh.Stdout = io.Discard
	must(t, virsh.Start())
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		buf := make([]byte, 4096)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			if _, err := io.WriteString(stdin, "domstats\n"); err != nil {
				t.Error(err)
			}
			for n := range count {
				readAll(t, d.path(vmName(n), "stats"), buf)
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	do()
	close(stop)
	<-stopped
	must(t, stdin.Close())
	must(t, virsh.Wait())
}

func sum(all []time.Duration) (total time.Duration) {
	for _, d := range all {
		total += d
	}
	return total
}

func mean(all []figure) figure {
	total := 0.0
	for _, f := range all {
		total += f.value
	}
	return figure{total / float64(len(all)), all[0].unit}
}
