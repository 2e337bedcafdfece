package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"banger/internal/printable"
)

const (
	// commandGrace is how long a command or a boot may go on after a signal, as with docker stop.
	commandGrace = 10 * time.Second
	// regainWait is how long `run --rm` waits for a daemon that has gone.
	regainWait = time.Minute
	regainPace = 200 * time.Millisecond
	// lastLines is how many lines of the console and the log are shown of a boot that failed.
	lastLines = 10
)

// oneRun is a `run --rm` under way. Its open file `hold` makes the daemon remove the VM when banger
// ends without having done so.
type oneRun struct {
	c      *client
	v      vm
	hold   *os.File
	caught chan os.Signal // that ask banger to end
}

// runOnce runs a VM in the foreground and removes it at the end.
func (c *client) runOnce(r *runOrder) error {
	caught := make(chan os.Signal, 16)
	signal.Notify(caught, ending...)
	defer signal.Stop(caught)
	hold, err := c.openHold()
	if err != nil {
		return err
	}
	defer func() { hold.Close() }()
	v, err := c.create(r, func(v vm) error {
		_, err := hold.Write([]byte("create " + v.name + "\n"))
		return err
	})
	if err != nil {
		return err
	}
	g := &oneRun{c: c, v: v, hold: hold, caught: caught}
	err = g.do(r)
	hold = g.hold
	return g.remove(err)
}

// openHold opens the file that keeps VMs. It can be read so that a daemon's end is noticed.
func (c *client) openHold() (*os.File, error) {
	f, err := open(c.tree.file("hold"), os.O_RDWR)
	return f, explain("cannot create a VM that is removed at its end", "", err)
}

// do configures the VM, boots it, and waits for the command or the program.
func (g *oneRun) do(r *runOrder) error {
	if err := g.during(func() error { return g.c.configure(g.v, r) }); err != nil {
		return err
	}
	if len(r.command) == 0 {
		return g.program(r.exec.terminal)
	}
	err := g.during(func() error {
		_, err := g.c.boot(g.v, r.timeout)
		return err
	})
	if err != nil {
		g.showEnd(err, "console", "log")
		return err
	}
	r.exec.grace = commandGrace
	err = g.c.exec(g.v.name, r.command, &r.exec)
	if g.gone() {
		return failf(exitFailed, "bangerd has ended, and with it the command in %s", g.v.name)
	}
	if state, e := readTrimmed(g.v.file("state")); e == nil && state == "failed" {
		g.showEnd(err, "console", "log")
	}
	return err
}

// during returns when f has returned or a signal asks banger to end. Then f goes on.
func (g *oneRun) during(f func() error) error {
	return untilSignal(g.caught, f)
}

// remove kills and removes the VM, and returns err or, if that is nil, why the VM is still there.
// Signals are ignored meanwhile: they could not make it faster.
func (g *oneRun) remove(err error) error {
	if g.gone() {
		fmt.Fprintf(g.c.std.err, "banger: bangerd is gone; its next start removes %s\n", g.v.name)
		return err
	}
	failed := g.v.command("kill")
	if failed == nil {
		failed = g.c.removeNew(g.v)
	}
	if _, e := os.Stat(g.v.dir); errors.Is(e, syscall.ENOENT) {
		return err
	}
	if failed == nil {
		return err
	}
	if err == nil {
		return failed
	}
	g.c.report(failed)
	return err
}

// gone reports whether the daemon that g.hold belongs to has ended.
func (g *oneRun) gone() bool {
	_, err := g.hold.ReadAt(make([]byte, 1), 0)
	return codeOf(err) == exitNoDaemon
}

// regain waits for the next daemon and holds the VM again.
func (g *oneRun) regain() error {
	g.hold.Close()
	late := time.After(regainWait)
	for {
		f, err := g.c.openHold()
		if err == nil {
			if _, err = f.Write([]byte("hold " + g.v.name + "\n")); err == nil {
				g.hold = f
				return nil
			}
			f.Close()
		}
		switch errnoOf(err) {
		case syscall.EBUSY, syscall.EPERM:
			return explain("cannot hold "+g.v.name, g.c.tree.file("error"), err)
		case syscall.ENOENT:
			if g.c.tree.check() == nil {
				return failf(exitFailed, "%s was removed while no bangerd ran", g.v.name)
			}
		}
		select {
		case <-time.After(regainPace):
		case <-late:
			return failf(exitFailed, "bangerd has ended, and none runs after %v", regainWait)
		case sig := <-g.caught:
			return endedBy(sig)
		}
	}
}

// showEnd prints the ends of files of a VM that failed, before err is printed.
func (g *oneRun) showEnd(err error, files ...string) {
	if _, ended := errors.AsType[commandEnded](err); ended {
		return
	}
	for _, name := range files {
		text, err := readTrimmed(g.v.file(name))
		if err != nil || text == "" {
			continue
		}
		fmt.Fprintf(g.c.std.err, "banger: the last lines of the %s of %s:\n", name, g.v.name)
		for _, line := range strings.Split(tail(text, lastLines), "\n") {
			line = printable.Escape(strings.TrimRight(line, "\r"))
			fmt.Fprintf(g.c.std.err, "  %s\n", line)
		}
	}
}
