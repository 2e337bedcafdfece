package main

import (
	"errors"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// answerWait is how long a guest may take to answer to a signal that banger passed on.
	answerWait = 3 * time.Second
	// repeatWait is the time in which the same signal counts once. timeout(1) sends each twice: to
	// its child, and to the group that the child is in.
	repeatWait = 200 * time.Millisecond
)

// ending are the signals that ask banger to end. With others they are passed on to commands.
var (
	ending    = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT}
	forwarded = append(slices.Clone(ending), unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH)
)

// interrupts passes banger's signals on to a command in a guest. It ends the wait for the command
// when the guest does not answer to one, and at the second signal that asks banger to end.
type interrupts struct {
	caught  chan os.Signal
	pass    func(syscall.Signal) error // it blocks until the guest has answered
	vm      string
	grace   time.Duration // after the first signal until the wait is over; 0: without end
	running chan struct{} // closed when the command runs
	ended   chan error    // receives at most once, why the wait is over
	over    chan struct{}
}

// catchSignals begins at once: from now on no signal ends banger alone. The caller stops it.
func catchSignals(vm string, grace time.Duration, pass func(syscall.Signal) error) *interrupts {
	x := &interrupts{caught: make(chan os.Signal, 16), pass: pass, vm: vm, grace: grace,
		running: make(chan struct{}), ended: make(chan error, 1), over: make(chan struct{})}
	signal.Notify(x.caught, forwarded...)
	go x.follow() // ends with stop
	return x
}

func (x *interrupts) stop() {
	signal.Stop(x.caught)
	close(x.over)
}

// during returns when f has returned or the wait is over. Then f goes on until banger ends.
func (x *interrupts) during(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case err := <-x.ended:
		return err
	}
}

// follow passes signals on until the wait is over.
func (x *interrupts) follow() {
	var first syscall.Signal // that asked banger to end
	var since time.Time
	var late, graceOver <-chan time.Time
	answers := make(chan error, 1)
	for {
		select {
		case caught := <-x.caught:
			sig := caught.(syscall.Signal)
			switch {
			case !slices.Contains(ending, caught):
				go x.passOn(sig)
			case first == 0:
				first, since, late = sig, time.Now(), time.After(answerWait)
				if x.grace > 0 {
					graceOver = time.After(x.grace)
				}
				go func() { answers <- x.passOn(sig) }()
			case sig != first || time.Since(since) >= repeatWait:
				x.ended <- failf(exitSignalled+int(sig), "ended by a second signal, %s; "+
					"the command in %s gets HUP, and KILL 2s later", signalName(sig), x.vm)
				return
			}
		case err := <-answers:
			late = nil // any other failure is the command's end
			if errors.Is(err, syscall.ETIMEDOUT) {
				x.ended <- x.unanswered(first)
				return
			}
		case <-late:
			x.ended <- x.unanswered(first)
			return
		case <-graceOver:
			x.ended <- failf(exitSignalled+int(unix.SIGKILL), "the command in %s has not ended "+
				"%v after %s", x.vm, x.grace, signalName(first))
			return
		case <-x.over:
			return
		}
	}
}

// passOn waits until the command runs, too.
func (x *interrupts) passOn(sig syscall.Signal) error {
	select {
	case <-x.running:
		return x.pass(sig)
	case <-x.over:
		return nil
	}
}

func (x *interrupts) unanswered(sig syscall.Signal) error {
	return failf(exitSignalled+int(sig), "%s did not answer to %s within %v; its command ends "+
		"when the guest runs on", x.vm, signalName(sig), answerWait)
}

// wasInterrupted reports whether an error is one of interrupts.
func wasInterrupted(err error) bool {
	f, ok := errors.AsType[*failure](err)
	return ok && f.code > exitSignalled
}

func signalName(s syscall.Signal) string { return strings.TrimPrefix(unix.SignalName(s), "SIG") }

// interruptible returns when f has returned, or a signal asks banger to end. It is for commands
// that have to leave something in order.
func interruptible(f func() error) error {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, ending...)
	defer signal.Stop(caught)
	return untilSignal(caught, f)
}

// untilSignal returns when f has returned or a signal was caught. Then f goes on.
func untilSignal(caught <-chan os.Signal, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case sig := <-caught:
		return endedBy(sig)
	}
}

// endedBy returns the status of a command that a signal has ended.
func endedBy(sig os.Signal) commandEnded {
	return commandEnded(exitSignalled + int(sig.(syscall.Signal)))
}
