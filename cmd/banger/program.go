package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"
)

// Reasons of the event `exit`, see EVENTS of banger(5).
const (
	programEnded = "the program of its image ended"
	notRunnable  = "its image cannot be run"
)

// program starts the VM and prints its console until it has ended. It returns how the image's
// program ended.
func (g *oneRun) program(onTerminal bool) error {
	screen := &consoleCopy{g: g, done: make(chan struct{}), ended: make(chan struct{})}
	in, ok := terminal(g.c.std.in)
	if screen.raw = ok && onTerminal; screen.raw {
		old, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return terminalError(err)
		}
		defer term.Restore(int(in.Fd()), old)
		fmt.Fprintf(g.c.std.err, "console of %s, Ctrl-] stops it\r\n", g.v.name)
	}
	if err := g.during(func() error { return g.v.command("start") }); err != nil {
		g.showEnd(err, "log")
		return err
	}
	go screen.run()
	if screen.raw {
		go g.typed()
	}
	first, err := g.untilEnd()
	close(screen.done)
	select {
	case <-screen.ended:
	case <-time.After(time.Second): // a reader of the output that takes nothing
	}
	return g.status(first, err)
}

// untilEnd waits until the VM has ended. It stops the VM at a signal and kills it at a second one,
// and returns the first signal, 0 for none. It waits for the next daemon when one ends.
func (g *oneRun) untilEnd() (first syscall.Signal, err error) {
	wait := func() chan error {
		ended := make(chan error, 1)
		go func() {
			_, err := readTrimmed(g.v.file("wait/stopped"))
			ended <- err
		}()
		return ended
	}
	var since time.Time
	for ended := wait(); ; {
		select {
		case err := <-ended:
			switch {
			case err == nil:
				return first, nil
			case g.gone():
				if err := g.regain(); err != nil {
					return first, err
				}
			case errnoOf(err) != syscall.EINTR:
				return first, err
			}
			time.Sleep(regainPace) // the daemon is ending, or has just begun
			ended = wait()
		case caught := <-g.caught:
			sig := caught.(syscall.Signal)
			switch {
			case first == 0:
				first, since = sig, time.Now()
				go func() { _ = g.v.command("stop") }() // its result is the VM's end
			case sig != first || time.Since(since) >= repeatWait:
				go func() { _ = g.v.command("kill") }()
			}
		}
	}
}

// status returns how a VM ended: as an error of banger, or as the status of the image's program.
func (g *oneRun) status(first syscall.Signal, err error) error {
	if _, interrupted := errors.AsType[commandEnded](err); interrupted || g.gone() {
		return err
	}
	text, _ := readTrimmed(g.v.file("events"))
	status, reason := lastExit(text)
	switch {
	case err == nil && reason == programEnded:
		return parseStatus(status)
	case err != nil && strings.HasPrefix(reason, notRunnable):
		err = g.v.explain("cannot run the image of "+g.v.name, err)
		g.c.report(err)
		return parseStatus(status)
	case first != 0:
		return endedBy(first)
	case err != nil:
		err = g.v.explain("cannot wait for its end", err)
		err = &failure{codeOf(err), fmt.Errorf("%s has failed: %w", g.v.name, err)}
		g.showEnd(err, "log")
		return err
	}
	return parseStatus(status)
}

// lastExit returns the status and the reason of the last `exit` among a VM's events.
func lastExit(events string) (status, reason string) {
	for _, line := range slices.Backward(lines(events)) {
		fields := strings.SplitN(line, " ", 5)
		if len(fields) == 5 && fields[3] == "exit" {
			status, reason, _ = strings.Cut(fields[4], ": ")
			return status, reason
		}
	}
	return "", ""
}

// typed sends what is typed to the console. The leave key stops the VM as a signal does.
func (g *oneRun) typed() {
	if err := sendTyped(g.c.std.in, consoleKeys{g.v}); err == nil {
		select {
		case g.caught <- syscall.SIGTERM:
		default:
		}
	}
}

// consoleKeys writes to a VM's console, which it opens for each write: a daemon may have ended
// since the last.
type consoleKeys struct{ vm vm }

func (k consoleKeys) Write(p []byte) (int, error) {
	_ = write(k.vm.file("console"), string(p)) // a guest that has ended takes no keys
	return len(p), nil
}

// consoleCopy prints what a VM prints, from the beginning. The console's file has all of it; a
// terminal, which blocks until the guest prints, tells when to look.
type consoleCopy struct {
	g     *oneRun
	raw   bool          // the output is a terminal that shows lines as they are
	done  chan struct{} // closed when the VM has ended
	ended chan struct{} // closed when all is printed

	file *os.File
	seen int64 // bytes of the file
	cr   bool  // a carriage return was read and not printed
}

const (
	quickLook = 10 * time.Millisecond
	slowLook  = 160 * time.Millisecond
)

func (s *consoleCopy) run() {
	defer close(s.ended)
	for s.print(); !s.over(); {
		bell, err := open(s.g.v.file("console"), os.O_RDWR)
		if err != nil { // it does not run now, or the daemon does not
			s.pause(slowLook)
			s.print()
			continue
		}
		s.print() // what came before the bell
		for buf := make([]byte, 4096); ; {
			if n, err := bell.Read(buf); n <= 0 || err != nil {
				break
			}
			// A VMM may write to the file a moment after the terminal has it.
			for pause := quickLook; pause <= slowLook; pause *= 2 {
				s.pause(pause)
				if s.print() {
					pause = quickLook / 2
				}
			}
		}
		bell.Close()
		s.print()
		s.pause(quickLook)
	}
	s.print()
	if s.file != nil {
		s.file.Close()
	}
}

func (s *consoleCopy) over() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// pause returns after that time, or when the VM has ended.
func (s *consoleCopy) pause(d time.Duration) {
	select {
	case <-s.done:
	case <-time.After(d):
	}
}

// print copies what is new in the console's file and reports whether something was.
func (s *consoleCopy) print() bool {
	if s.file == nil {
		f, err := open(s.g.v.file("console"), os.O_RDONLY)
		if err != nil {
			return false
		}
		if st, err := f.Stat(); err == nil { // shorter than before when its head was cut
			s.seen, _ = f.Seek(min(s.seen, st.Size()), io.SeekStart)
		}
		s.file = f
	}
	news := false
	for buf := make([]byte, streamBuffer); ; {
		n, err := s.file.Read(buf)
		if n > 0 {
			news = true
			s.seen += int64(n)
			_, _ = s.g.c.std.out.Write(s.text(buf[:n])) // a guest runs on without a reader
		}
		if err != nil && !errors.Is(err, io.EOF) { // the next daemon has another file
			s.file.Close()
			s.file = nil
		}
		if err != nil || n == 0 {
			return news
		}
	}
}

// text returns lines that end as lines of a file do. A serial line ends them with two bytes.
func (s *consoleCopy) text(p []byte) []byte {
	if s.raw {
		return p
	}
	if s.cr {
		p = append([]byte{'\r'}, p...)
	}
	if s.cr = bytes.HasSuffix(p, []byte{'\r'}); s.cr {
		p = p[:len(p)-1]
	}
	return bytes.ReplaceAll(p, []byte("\r\n"), []byte("\n"))
}
