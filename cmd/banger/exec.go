package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"banger/internal/value"
)

// Exit codes of banger exec beside the command's own, as docker exec and timeout(1) have them.
const (
	exitTimedOut   = 124
	exitNotRun     = 125
	exitNotAllowed = 126
	exitNoCommand  = 127
	exitSignalled  = 128 // plus the signal's number
)

// commandEnded is the exit code of a command in a guest, as an error.
type commandEnded int

func (c commandEnded) Error() string { return "the command ended with " + strconv.Itoa(int(c)) }

// execFlags are the flags of banger exec.
type execFlags struct {
	input, terminal, detach bool
	dir, user               string
	env                     []string
	timeout                 time.Duration
	grace                   time.Duration // after a signal, until banger ends; 0: without end
}

const execHelp = `Run a command in a guest, through its agent: this needs neither ssh nor a network.
No shell reads the command; to use one, type banger exec VM -- sh -c 'COMMAND LINE'.
The command ends with banger, unless it is detached.

Signals are passed on. A second one ends banger, and so does a guest that hangs for 3 s after one.

The exit code is the command's own, 128+N if signal N killed it or ended banger, or:
  124  the timeout ended it
  125  banger could not run it
  126  the guest may not execute it
  127  the guest does not have it`

func (c *client) execCmd() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec [flags] VM [--] COMMAND [ARGUMENT...]",
		Short: "Run a command in a guest", Long: execHelp,
		Args: cobra.MinimumNArgs(2), ValidArgsFunction: c.completeVMs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			argv := args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return errors.New("no command: use banger exec VM COMMAND")
			}
			if f.detach && (f.input || f.terminal) {
				return errors.New("-d excludes -i and -t: it leaves neither input nor terminal")
			}
			return asCommand(c.exec(args[0], argv, &f))
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.BoolVarP(&f.input, "interactive", "i", false, "send it standard input")
	flags.BoolVarP(&f.terminal, "tty", "t", false, "run it on a terminal")
	flags.BoolVarP(&f.detach, "detach", "d", false, "leave it running, without input and output")
	addCommandFlags(flags, &f)
	flags.DurationVar(&f.timeout, "timeout", 0, "end it after this `TIME`, e.g. 30s (0: never)")
	return cmd
}

// addCommandFlags adds the flags that say how a command runs in its guest.
func addCommandFlags(flags *pflag.FlagSet, f *execFlags) {
	flags.StringVarP(&f.dir, "workdir", "w", "",
		"`DIR` in the guest (default: the image's or the user's home)")
	flags.StringVarP(&f.user, "user", "u", "",
		"`USER` in the guest, a name or uid, perhaps with :GROUP (default: the image's or root)")
	flags.StringArrayVarP(&f.env, "env", "e", nil,
		"`NAME=VALUE` for its environment, or NAME for the value here; may be repeated")
}

// asCommand returns an error of banger's as that of a command, whose exit codes are others.
func asCommand(err error) error {
	if failed, ok := errors.AsType[*failure](err); ok && !wasInterrupted(err) {
		return &failure{execCode(err), failed.err}
	}
	return err
}

// execCode returns the exit code for a command that did not run.
func execCode(err error) int {
	if r, ok := errors.AsType[*refusal](err); ok {
		switch r.errno {
		case syscall.ENOENT:
			return exitNoCommand
		case syscall.EACCES:
			return exitNotAllowed
		}
	}
	return exitNotRun
}

// refusal is a guest's answer to a command that it does not run.
type refusal struct {
	error
	errno error
}

func (r *refusal) Unwrap() error { return r.error }

// commands returns the session's commands that stand for the flags.
func (f *execFlags) commands(std stdio) []string {
	var all []string
	add := func(set bool, word, value string) {
		if set {
			all = append(all, word+" "+value)
		}
	}
	add(f.dir != "", "dir", f.dir)
	add(f.user != "", "user", f.user)
	kind := os.Getenv("TERM")
	add(f.terminal, "tty", terminalSize(std))
	add(f.terminal && kind != "", "env", "TERM="+kind)
	for _, e := range f.env {
		if !strings.Contains(e, "=") {
			e += "=" + os.Getenv(e)
		}
		add(true, "env", e)
	}
	add(f.timeout > 0, "timeout", f.timeout.String())
	if f.detach {
		all = append(all, "detach")
	}
	return all
}

// terminalSize returns COLUMNSxROWS of the terminal on the standard output, or nothing.
func terminalSize(std stdio) string {
	if out, ok := terminal(std.out); ok {
		if w, h, err := term.GetSize(int(out.Fd())); err == nil && w > 0 && h > 0 {
			return fmt.Sprintf("%dx%d", w, h)
		}
	}
	return ""
}

// exec runs argv in a VM. It returns nil for exit code 0 and commandEnded for any other.
func (c *client) exec(name string, argv []string, f *execFlags) error {
	s, err := c.newSession(name)
	if err != nil {
		return err
	}
	defer s.ctl.Close()
	for _, command := range f.commands(c.std) {
		if err := s.control(command); err != nil {
			return s.explain(err)
		}
	}
	list := make([]value.Raw, len(argv))
	for i, a := range argv {
		list[i] = value.Raw(a)
	}
	text, err := json.Marshal(list)
	if err != nil {
		return &failure{exitNotRun, err}
	}
	signals := catchSignals(name, f.grace,
		func(sig syscall.Signal) error { return c.forward(s, f, sig) })
	defer signals.stop()
	err = signals.during(func() error { return s.control("argv " + string(text)) })
	switch {
	case wasInterrupted(err):
		return err
	case err != nil:
		return &failure{exitNotRun, &refusal{s.explain(err), errnoOf(err)}}
	case f.detach:
		return nil
	}
	close(signals.running)
	return c.attach(s, f, signals)
}

// attach connects a running command with banger's streams. It returns when the command has ended
// and all of its output is copied, or when signals ends the wait.
func (c *client) attach(s *session, f *execFlags, signals *interrupts) error {
	data, err := s.open("data", os.O_RDWR)
	if err != nil {
		return err
	}
	defer data.Close()
	errs, err := s.open("stderr", os.O_RDONLY)
	if err != nil {
		return err
	}
	defer errs.Close()
	if in, ok := terminal(c.std.in); ok && f.terminal && f.input {
		old, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return terminalError(err)
		}
		defer term.Restore(int(in.Fd()), old)
	}
	input := io.Reader(strings.NewReader(""))
	if f.input {
		input = c.std.in
	}
	go s.send(data, input)
	return signals.during(func() error {
		copied := make(chan error, 2)
		go func() { copied <- transfer(c.std.out, data, streamBuffer) }()
		go func() { copied <- transfer(c.std.err, errs, streamBuffer) }()
		for range 2 {
			if err := <-copied; err != nil {
				return explain("cannot copy the output of the command in "+s.vm.name, "", err)
			}
		}
		status, err := readTrimmed(s.file("status"))
		if err != nil {
			return explain("cannot read the status of the command in "+s.vm.name, "", err)
		}
		return parseStatus(status)
	})
}

// forward passes a signal on to the command, or the terminal's new size. It returns when the guest
// has answered to the signal. A command that has ended needs neither.
func (c *client) forward(s *session, f *execFlags, sig syscall.Signal) error {
	if sig != unix.SIGWINCH {
		return s.control("signal " + strconv.Itoa(int(sig)))
	}
	if size := terminalSize(c.std); size != "" && f.terminal {
		return s.control("resize " + size)
	}
	return nil
}

// parseStatus returns a command's end from the text of the file `status`.
func parseStatus(status string) error {
	word, rest, _ := strings.Cut(status, " ")
	n, err := strconv.Atoi(rest)
	if err != nil && word == "killed" {
		if sig := unix.SignalNum("SIG" + rest); sig != 0 {
			n, err = int(sig), nil
		}
	}
	switch {
	case status == "timed out":
		return commandEnded(exitTimedOut)
	case word == "exited" && err == nil && n == 0:
		return nil
	case word == "exited" && err == nil:
		return commandEnded(n)
	case word == "killed" && err == nil:
		return commandEnded(exitSignalled + n)
	}
	return failf(exitNotRun, "cannot parse the command's status %q", status)
}
