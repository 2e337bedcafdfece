package main

import (
	"log"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/vmm/guest"

	"golang.org/x/sys/unix"
)

// grace is how long processes have between SIGTERM and SIGKILL at a power off.
const grace = 500 * time.Millisecond

// greetWait is how long the program of an image waits for its name, address and resolvers.
const greetWait = 10 * time.Second

// runInit is process 1: it never returns and never exits but by reboot(2).
func runInit() {
	os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
	os.Setenv("HOME", "/root")
	os.Setenv("TERM", "linux")
	mountKernel()
	liftMaxFiles()
	loadModules("/etc/banger/modules")
	program, err := enterRoot()
	var end *ending
	if program != nil || err != nil {
		end = newEnding()
	}
	if err != nil { // a panic of the kernel would not say why: the host collects that
		log.Print(err)
		mountKernel() // they may have moved
		end.set(endOf(0, err))
	} else if program == nil {
		mountAt("tmpfs", "/run", "tmpfs")
		mountAt("tmpfs", "/tmp", "tmpfs")
	}
	if err := linkUp("lo"); err != nil {
		log.Print(err)
	}
	var r reaper
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGUSR2)
	off := make(chan int, 4)
	g := &agent{children: &r, program: program, end: end, freezer: freezer{list: frozenList},
		powerOff: func() { off <- unix.LINUX_REBOOT_CMD_POWER_OFF }}
	if end != nil {
		g.greeted = make(chan struct{})
	}
	go func() {
		if err := serve(g); err != nil {
			log.Print(err)
		}
	}()
	main := make(chan *child, 1) // what the image runs, when it runs
	switch {
	case err != nil:
		program = nil
		go func() {
			g.awaitGreeting()
			off <- unix.LINUX_REBOOT_CMD_POWER_OFF
		}()
	case program != nil:
		go func() {
			g.awaitGreeting() // as in a container, all is there when the program begins
			end.set(runMain(program, &r, main))
			off <- unix.LINUX_REBOOT_CMD_POWER_OFF
		}()
	default:
		go func() {
			if _, err := os.Stat("/etc/banger/rc"); err == nil {
				r.run(exec.Command("/bin/sh", "/etc/banger/rc"))
			}
		}()
		go shells(&r)
	}
	for {
		select {
		case how := <-off:
			select {
			case c := <-main: // its end arrives here; a host that waits too long ends the machine
				unix.Sync()
				c.signal(stopSignal(program.StopSignal))
				continue
			default:
			}
			shutdown(&r, how, g)
		case s := <-signals:
			switch s {
			case unix.SIGCHLD:
				r.reap()
			case unix.SIGUSR1, unix.SIGUSR2:
				shutdown(&r, unix.LINUX_REBOOT_CMD_POWER_OFF, g)
			default:
				shutdown(&r, unix.LINUX_REBOOT_CMD_RESTART, g)
			}
		}
	}
}

// awaitGreeting returns when the host has set name, address and resolvers, or after greetWait.
func (g *agent) awaitGreeting() {
	select {
	case <-g.greeted:
	case <-time.After(greetWait):
		log.Printf("no host has greeted within %v", greetWait)
	}
}

// endConfigure waits, for a while, until no settings are being written, and lets none begin. A
// power-off in the middle of a write was seen to hang.
func (g *agent) endConfigure() {
	for end := time.Now().Add(greetWait); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if g.configuring.TryLock() {
			return
		}
	}
}

// runMain runs the program of the image until its end. started has it meanwhile.
func runMain(program *guest.Program, r *reaper, started chan *child) guest.End {
	status, err := runProgram(program, r, func(c *child) { started <- c })
	if err != nil {
		log.Printf("what the image is to run cannot be run: %v", err)
	} else {
		log.Printf("%s %s", program.Args[0], howEnded(status))
	}
	select {
	case <-started: // there is nothing left to signal
	default:
	}
	return endOf(status, err)
}

// mountKernel mounts the kernel's own file systems.
func mountKernel() {
	for _, m := range []struct{ source, target, kind string }{
		{"proc", "/proc", "proc"}, {"sys", "/sys", "sysfs"}, {"dev", "/dev", "devtmpfs"},
		{"devpts", "/dev/pts", "devpts"},
	} {
		mountAt(m.source, m.target, m.kind)
	}
}

// mountAt mounts a file system of the kernel's.
func mountAt(source, target, kind string) {
	os.MkdirAll(target, 0o755)
	err := unix.Mount(source, target, kind, unix.MS_NOSUID, "")
	if err != nil && err != unix.EBUSY {
		log.Printf("cannot mount %s: %v", target, err)
	}
}

// shutdown ends everything and the machine; it does not return.
func shutdown(r *reaper, how int, g *agent) {
	unix.Kill(-1, unix.SIGTERM)
	r.hangUp()
	unix.Kill(-1, unix.SIGCONT)
	for end := time.Now().Add(grace); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if !reapAll() {
			break
		}
	}
	unix.Kill(-1, unix.SIGKILL)
	g.end.hold()
	g.endConfigure()
	unix.Sync()
	unix.Unmount(workPoint, 0)                                  // EBUSY or EINVAL: its journal will do
	unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "") // the same
	unix.Reboot(how)
	select {}
}

// reapAll collects what has ended and reports whether children are left.
func reapAll() bool {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false
		}
		if pid == 0 {
			return true
		}
	}
}

// loadModules loads the listed kernel modules in order; one that fails is told and passed over.
func loadModules(list string) {
	for _, path := range strings.Fields(string(readFile(list))) {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
			log.Printf("cannot load %s: %v", path, err)
		}
		f.Close()
	}
}

// reaper collects every child, those that were started here and the orphans.
type reaper struct {
	mu    sync.Mutex // held over fork and over reaping, so that a pid always stands for one child
	known map[int]*child
}

// start implements starter.
func (r *reaper) start(cmd *exec.Cmd) (*child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{pid: cmd.Process.Pid, mu: &r.mu, done: make(chan struct{})}
	cmd.Process.Release()
	if r.known == nil {
		r.known = map[int]*child{}
	}
	r.known[c.pid] = c
	return c, nil
}

// run starts cmd and waits until it ends.
func (r *reaper) run(cmd *exec.Cmd) error {
	c, err := r.start(cmd)
	if err != nil {
		return err
	}
	<-c.done
	return nil
}

// hangUp sends SIGHUP to the agent's children: an interactive shell ignores SIGTERM.
func (r *reaper) hangUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for pid := range r.known {
		unix.Kill(pid, unix.SIGHUP)
	}
}

func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if c := r.known[pid]; c != nil {
			c.endLocked(status)
			delete(r.known, pid)
		}
	}
}

// console gives the device behind /dev/console, which itself cannot be a controlling terminal.
func console() string {
	names := strings.Fields(string(readFile("/sys/class/tty/console/active")))
	if len(names) == 0 {
		return "/dev/ttyS0"
	}
	return "/dev/" + names[len(names)-1]
}

// shells keeps a root shell on the serial console.
func shells(r *reaper) {
	for {
		began := time.Now()
		if tty, err := os.OpenFile(console(), os.O_RDWR|unix.O_NOCTTY, 0); err == nil {
			cmd := exec.Command("/bin/sh", "-l")
			cmd.Dir = "/"
			cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
			if err := r.run(cmd); err != nil {
				log.Printf("cannot start a shell: %v", err)
			}
			tty.Close()
		}
		// One that ends at once must not spin.
		if time.Since(began) < time.Second {
			time.Sleep(time.Second)
		}
	}
}
