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

// realCommandLine boots a VM once and gives QEMU's command line from its log.
func realCommandLine(t *testing.T, d *daemon, boot func()) string {
	boot()
	log, err := read(d.path("web", "log"))
	if err != nil {
		t.Fatal(err)
	}
	i := strings.LastIndex(log, "/usr/bin/qemu-system")
	if i < 0 {
		t.Fatal("no command line in the log")
	}
	commandLine, _, _ := strings.Cut(log[i:], "\n")
	return commandLine
}

// bareQEMU is a QEMU without a daemon, with a VM's arguments but for its sockets, which are in dir.
type bareQEMU struct {
	*exec.Cmd
	dir    string
	client *guest.Client
}

// newBareQEMU starts nothing yet. The caller ends it.
func newBareQEMU(t *testing.T, commandLine string) *bareQEMU {
	dir := t.TempDir()
	commandLine = regexp.MustCompile(`socket,id=(\w+),fd=\d+`).ReplaceAllString(commandLine, "socket,id=$1,path="+dir+"/$1")
	commandLine = regexp.MustCompile(`logfile=[^ ,]*`).ReplaceAllString(commandLine, "logfile="+filepath.Join(dir, "console.log"))
	return &bareQEMU{exec.Command("bash", "-c", "exec "+commandLine), dir, guest.NewClient(func(ctx context.Context) (net.Conn, error) {
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
	}, nil)}
}

func (q *bareQEMU) end() {
	q.client.Close()
	_ = q.Process.Kill()
	_ = q.Wait() // killed
}

// answers waits until the agent in it does.
func (q *bareQEMU) answers(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := q.client.Ping(ctx); err != nil {
		t.Fatal(err)
	}
}

// realDaemon has one VM, `web`, on a network of its own VMM's.
func realDaemon(t *testing.T) *daemon {
	d := testDaemon(t, "qemu")
	if err := os.Mkdir(d.path("web"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := write(d.path("web", "net"), "user"); err != nil {
		t.Fatal(err)
	}
	return d
}

// bootWeb starts the VM, waits until it is healthy, and kills it.
func bootWeb(t *testing.T, d *daemon) time.Duration {
	defer func() {
		if err := write(d.path("web", "state"), "kill"); err != nil {
			t.Fatal(err)
		}
	}()
	return took(func() {
		if err := write(d.path("web", "state"), "start"); err != nil {
			t.Fatal(err)
		}
		if _, err := read(d.path("web", "wait", "healthy")); err != nil {
			t.Fatal(err)
		}
	})
}

// reportBoot starts real VMs through the daemon and by hand, with the same arguments but for the sockets.
func reportBoot(t *testing.T) []line {
	if ok, cure := realVMs(); !ok {
		t.Log("no boots measured: ", cure)
		return nil
	}
	d := realDaemon(t)
	commandLine := realCommandLine(t, d, func() { bootWeb(t, d) })
	bare := func() time.Duration {
		q := newBareQEMU(t, commandLine)
		defer q.end()
		return took(func() {
			if err := q.Start(); err != nil {
				t.Fatal(err)
			}
			q.answers(t)
		})
	}
	// Boots differ by a fifth from one to the next.
	a, b := compareRounds(11, func() time.Duration { return bootWeb(t, d) }, bare)
	return []line{against("start to healthy, against bare QEMU", a.Round(time.Millisecond), b.Round(time.Millisecond), fmt.Sprintf("≤ 1.05x (%d CPUs)", runtime.NumCPU()))}
}

// plainInit does what the agent does as init, but for the agent: it mounts, loads the modules and sleeps.
const plainInit = `#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in $(cat /etc/banger/modules); do insmod $m; done
ip link set lo up
echo plain init is done
exec sleep 1000000
`

// onCPU gives how long the threads of a process ran, by the scheduler (/proc/PID/task/TID/schedstat, scheduler/sched-stats.rst).
func onCPU(t *testing.T, pid int) time.Duration {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || files == nil {
		t.Fatalf("process %d has no schedstat: %v", pid, err)
	}
	var sum time.Duration
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a worker of QEMU's that has ended
		}
		n, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(n)
	}
	return sum
}

// reportQuiet has a guest with the agent and one without it idle side by side.
func reportQuiet(t *testing.T) []line {
	if ok, cure := realVMs(); !ok {
		t.Log("no idle guests measured: ", cure)
		return nil
	}
	d := realDaemon(t)
	commandLine := realCommandLine(t, d, func() { bootWeb(t, d) })
	if err := d.signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	initrd := regexp.MustCompile(`-initrd (\S+)`).FindStringSubmatch(commandLine)[1]
	plainInitrd := filepath.Join(t.TempDir(), "initrd")
	appendToInitrd(t, initrd, plainInitrd, map[string][]byte{"plain": []byte(plainInit)})
	plain := strings.Replace(commandLine, initrd, plainInitrd, 1)
	plain = strings.Replace(plain, "console=ttyS0", "rdinit=/plain console=ttyS0", 1)
	with, without := newBareQEMU(t, commandLine), newBareQEMU(t, plain)
	for _, q := range []*bareQEMU{with, without} {
		if err := q.Start(); err != nil {
			t.Fatal(err)
		}
		defer q.end()
	}
	with.answers(t)
	if err := with.client.Configure(context.Background(), guest.Config{Hostname: "web", Time: time.Now()}); err != nil { // as a daemon does
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if b, _ := os.ReadFile(filepath.Join(without.dir, "console.log")); bytes.Contains(b, []byte("plain init is done")) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the guest without an agent does not boot")
		}
	}
	time.Sleep(20 * time.Second) // what a kernel does after its boot
	const window = 60 * time.Second
	before := [2]time.Duration{onCPU(t, with.Process.Pid), onCPU(t, without.Process.Pid)}
	time.Sleep(window)
	a, b := onCPU(t, with.Process.Pid)-before[0], onCPU(t, without.Process.Pid)-before[1]
	percent := func(d time.Duration) string {
		return fmt.Sprintf("%.2f %% of a core", 100*d.Seconds()/window.Seconds())
	}
	return []line{{"an idle guest, against one without the agent", percent(a), percent(b), fmt.Sprintf("%.2fx", float64(a)/float64(b)), "≤ 1.05x"}}
}
