// Hostile is the init of a guest that misbehaves, for TestHostile.
//
// It starts as banger-agent does and uses the agent's framing. The word hostile=MODE of the
// kernel's command line is its mode, and each line typed on the console sets another. It prints
// `mode MODE` then. In every mode but `mute` it lets itself be configured, so that the VM has an
// address.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"banger/vmm/guest"
)

func main() {
	log.SetFlags(0)
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && err != unix.EBUSY {
			log.Printf("cannot mount %s: %v", m[1], err)
		}
	}
	loadModules()
	m := newModes(word("hostile"))
	g := &agent{}
	go obeyConsole(m)
	go serveHTTP(&g.gateway)
	p, err := openPort(m)
	if err == nil {
		err = guest.ServePort(p, handler(m, g))
	}
	log.Print(err)
	select {} // a process 1 that exits is a kernel panic
}

func loadModules() {
	list, err := os.ReadFile("/etc/banger/modules")
	if err != nil {
		log.Print(err)
	}
	for _, path := range strings.Fields(string(list)) {
		f, err := os.Open(path)
		if err == nil {
			err = unix.FinitModule(int(f.Fd()), "", 0)
			f.Close()
		}
		if err != nil && err != unix.EEXIST {
			log.Printf("cannot load %s: %v", path, err)
		}
	}
}

// word returns the value of a word of the kernel's command line.
func word(key string) string {
	line, _ := os.ReadFile("/proc/cmdline")
	value := ""
	for _, w := range strings.Fields(string(line)) {
		if v, ok := strings.CutPrefix(w, key+"="); ok {
			value = v
		}
	}
	return value
}

func obeyConsole(m *modes) {
	tty, err := os.OpenFile("/dev/ttyS0", os.O_RDWR, 0)
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Fprintf(tty, "mode %s\n", m.now())
	for lines := bufio.NewScanner(tty); lines.Scan(); {
		if name := strings.TrimSpace(lines.Text()); name != "" {
			m.set(name)
			fmt.Fprintf(tty, "mode %s\n", name)
		}
	}
}

// agent is an honest agent.
type agent struct{ gateway atomic.Pointer[netip.Addr] }

func (*agent) Ping(context.Context) (guest.Info, error) {
	return guest.Info{Version: "hostile", Uptime: 1}, nil
}

func (*agent) Listeners(context.Context) ([]guest.Listener, error) {
	return []guest.Listener{{Protocol: "tcp", Address: "0.0.0.0", Port: plainPort,
		PID: 1, Process: "honest", Command: "/honest"}}, nil
}

func (*agent) Stats(context.Context) (guest.Stats, error) {
	return guest.Stats{MemTotal: 2 << 20, MemAvailable: 1 << 20, Procs: 1, Uptime: 1}, nil
}

func (g *agent) Configure(_ context.Context, c guest.Config) error {
	if !c.Address.IsValid() {
		return nil
	}
	nics, err := filepath.Glob("/sys/class/net/e*")
	if err != nil || len(nics) != 1 {
		return fmt.Errorf("there are %d interfaces: %v", len(nics), err)
	}
	nic := filepath.Base(nics[0])
	for _, args := range []string{"link set lo up",
		"addr replace " + c.Address.String() + " dev " + nic, "link set " + nic + " up"} {
		out, err := exec.Command("/bin/ip", strings.Fields(args)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	g.gateway.Store(&c.Gateway)
	return nil
}

func (*agent) PowerOff(context.Context) error { return nil }
