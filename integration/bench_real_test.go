package integration

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/vmm/guest"
)

// lastCommandLine returns the command line of the last QEMU of a VM, from its log.
func lastCommandLine(t *testing.T, d *daemon, vm string) string {
	t.Helper()
	log, err := read(d.path(vm, "log"))
	must(t, err)
	i := strings.LastIndex(log, "/usr/bin/qemu-system")
	if i < 0 {
		t.Fatal("no command line in the log")
	}
	commandLine, _, _ := strings.Cut(log[i:], "\n")
	return commandLine
}

// logFile is the option of a QEMU's console that names the file of all output.
var logFile = regexp.MustCompile(`logfile=([^ ,]*)`)

// bareQEMU is a QEMU without a daemon. Its arguments are a VM's, with sockets in dir.
type bareQEMU struct {
	*exec.Cmd
	dir    string
	client *guest.Client
}

// newBareQEMU starts nothing yet. The caller ends it.
func newBareQEMU(t *testing.T, commandLine string) *bareQEMU {
	dir := t.TempDir()
	sockets := regexp.MustCompile(`socket,id=(\w+),fd=\d+`)
	commandLine = sockets.ReplaceAllString(commandLine, "socket,id=$1,path="+dir+"/$1")
	commandLine = strings.ReplaceAll(commandLine, "wait=on", "wait=off") // nobody uses its monitor
	console := "logfile=" + filepath.Join(dir, "console.log")
	commandLine = logFile.ReplaceAllString(commandLine, console)
	dial := func(ctx context.Context) (net.Conn, error) {
		var n net.Dialer
		for {
			c, err := n.DialContext(ctx, "unix", filepath.Join(dir, "agent"))
			if err == nil {
				return c, nil
			}
			select {
			case <-ctx.Done():
				return nil, err
			case <-time.After(time.Millisecond):
			}
		}
	}
	cmd := exec.Command("bash", "-c", "exec "+commandLine)
	return &bareQEMU{cmd, dir, guest.NewClient(dial, nil)}
}

func (q *bareQEMU) end() {
	q.client.Close()
	_ = q.Process.Kill()
	_ = q.Wait() // killed
}

// answers waits until the guest's agent answers.
func (q *bareQEMU) answers(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := q.client.Ping(ctx)
	must(t, err)
}

// benchBoot starts the same QEMU through the daemon and by hand.
func benchBoot(b *bench) {
	needRealVMs(b.T)
	d := realDaemon(b.T)
	bootWeb(b.T, d)
	commandLine := lastCommandLine(b.T, d, "web")
	bare := func() time.Duration {
		q := newBareQEMU(b.T, commandLine)
		defer q.end()
		return took(func() {
			must(b.T, q.Start())
			q.answers(b.T)
		})
	}
	// Boots differ by a fifth from one to the next.
	x, y := compareRounds(11, func() time.Duration { return bootWeb(b.T, d) }, bare)
	aim := fmt.Sprintf("≤ 1.05x (%d CPUs)", runtime.NumCPU())
	b.times("start to healthy, against bare QEMU", x, y, aim)
}

// plainInit mounts, loads the same modules as the agent does as init, and sleeps.
const plainInit = `#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in $(cat /etc/banger/modules); do insmod $m; done
ip link set lo up
echo plain init is done
exec sleep 1000000
`

// onCPU returns how long the threads of a process ran, from the scheduler
// (/proc/PID/task/TID/schedstat, scheduler/sched-stats.rst).
func onCPU(t *testing.T, pid int) time.Duration {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || files == nil {
		t.Fatalf("process %d has no schedstat: %v", pid, err)
	}
	var sum time.Duration
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // a worker of QEMU's that has ended
		}
		n, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		must(t, err)
		sum += time.Duration(n)
	}
	return sum
}

// sideBySide returns the shares of a core of two processes in the same window.
func sideBySide(t *testing.T, window time.Duration, pids ...int) []figure {
	t.Helper()
	var shares []figure
	for _, pid := range pids {
		shares = append(shares, figure{float64(onCPU(t, pid)), "%"})
	}
	time.Sleep(window)
	for i, pid := range pids {
		shares[i] = coreShare(onCPU(t, pid)-time.Duration(shares[i].value), window)
	}
	return shares
}

// settleGuest is how long a kernel works after its boot.
const settleGuest = 20 * time.Second

// awaitText waits until a file contains the text.
func awaitText(t *testing.T, file, text string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if b, _ := os.ReadFile(file); bytes.Contains(b, []byte(text)) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%q is not in %s after a minute", text, file)
		}
	}
}

// benchQuiet compares an idle guest with the agent with one without it, side by side.
func benchQuiet(b *bench) {
	needRealVMs(b.T)
	d := realDaemon(b.T)
	bootWeb(b.T, d)
	commandLine := lastCommandLine(b.T, d, "web")
	must(b.T, d.signal(syscall.SIGTERM))
	fd := regexp.MustCompile(`-initrd /proc/self/fd/(\d+)`).FindStringSubmatch(commandLine)[1]
	initrd := regexp.MustCompile(` ` + fd + `<(\S+)`).FindStringSubmatch(commandLine)[1]
	plainInitrd := filepath.Join(b.TempDir(), "initrd")
	appendToInitrd(b.T, initrd, plainInitrd, map[string][]byte{"plain": []byte(plainInit)})
	plain := strings.Replace(commandLine, fd+"<"+initrd, fd+"<"+plainInitrd, 1)
	plain = strings.Replace(plain, "console=ttyS0", "rdinit=/plain console=ttyS0", 1)
	with, without := newBareQEMU(b.T, commandLine), newBareQEMU(b.T, plain)
	for _, q := range []*bareQEMU{with, without} {
		must(b.T, q.Start())
		defer q.end()
	}
	with.answers(b.T)
	config := guest.Config{Hostname: "web", Time: time.Now()} // as a daemon does
	must(b.T, with.client.Configure(context.Background(), config))
	awaitText(b.T, filepath.Join(without.dir, "console.log"), "plain init is done")
	time.Sleep(settleGuest)
	shares := sideBySide(b.T, time.Minute, with.Process.Pid, without.Process.Pid)
	b.row("an idle guest, against one without the agent", shares[0], shares[1], "≤ 1.05x")
}
