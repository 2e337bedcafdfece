package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Exit codes of banger exec beside the command's own, those of docker exec and timeout(1).
const (
	exitTimedOut  = 124
	exitNotRun    = 125
	exitNotAllow  = 126
	exitNoCommand = 127
	exitSignalled = 128 // and the signal's number
)

// copySize is how much of a stream is taken at once: what one read of the tree can give.
const copySize = 128 << 10

// commandEnded is how a command in a guest ended. It says nothing of banger's own.
type commandEnded int

func (c commandEnded) Error() string { return "the command ended with " + strconv.Itoa(int(c)) }

// session is an open exec/clone of a VM, which is the ctl of the session that it made: the session ends with it, however banger ends.
type session struct {
	vm  string
	dir string // of the VM
	ctl *os.File
	at  string // of the session's files
}

// newSession makes a session in a VM.
func (c *client) newSession(name string) (*session, error) {
	dir, err := c.tree().vm(name)
	if err != nil {
		return nil, err
	}
	doing := "cannot run anything in " + name
	ctl, err := open(filepath.Join(dir, "exec", "clone"), os.O_RDWR)
	if err != nil {
		sentences := ""
		if !errors.Is(err, syscall.EACCES) {
			sentences = filepath.Join(dir, "error")
		}
		return nil, explain(doing, sentences, err)
	}
	number := make([]byte, 16)
	n, err := ctl.Read(number)
	if err != nil {
		ctl.Close()
		return nil, explain(doing, "", err)
	}
	return &session{name, dir, ctl, filepath.Join(dir, "exec", strings.TrimSpace(string(number[:n])))}, nil
}

// tell gives the session a command. Its error is the errno as it came.
func (s *session) tell(words ...string) error {
	_, err := s.ctl.Write([]byte(strings.Join(words, " ")))
	return err
}

// explain makes an error of tell's a failure.
func (s *session) explain(err error) error {
	return explain("cannot run it in "+s.vm, filepath.Join(s.dir, "error"), err)
}

func (s *session) open(file string, flags int) (*os.File, error) {
	f, err := open(filepath.Join(s.at, file), flags)
	return f, explain("cannot use the session in "+s.vm, "", err)
}

// execFlags are the flags of banger exec.
type execFlags struct {
	input, terminal, detach bool
	dir, user               string
	env                     []string
	timeout                 time.Duration
}

const execHelp = `Run a command in a guest, through its agent: no ssh and no network. Its output and errors are banger's. A command without
a shell's words is run as it is given; for a shell give one: banger exec VM -- sh -c 'COMMAND LINE'.
When banger ends, so does the command, unless it was detached.

Exit codes are the command's own, 128+N if signal N killed it, and:
  124  it was ended because its time was over
  125  banger could not run it
  126  it is in the guest and may not be run
  127  it is not in the guest`

func (c *client) execCmd() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use: "exec [flags] VM [--] COMMAND [ARGUMENT...]", Short: "Run a command in a guest", Args: cobra.MinimumNArgs(2), ValidArgsFunction: c.complete(1),
		Long: execHelp,
		RunE: func(_ *cobra.Command, args []string) error {
			argv := args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return errors.New("cannot run nothing: give a command")
			}
			if f.detach && (f.input || f.terminal) {
				return errors.New("cannot detach with -i or -t: what is detached has neither input nor terminal")
			}
			err := c.exec(args[0], argv, &f)
			if failed := (*failure)(nil); errors.As(err, &failed) {
				return &failure{execCode(err), failed.err}
			}
			return err
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&f.input, "interactive", "i", false, "give it standard input")
	cmd.Flags().BoolVarP(&f.terminal, "tty", "t", false, "give it a terminal")
	cmd.Flags().BoolVarP(&f.detach, "detach", "d", false, "leave it running, without input and output")
	cmd.Flags().StringVarP(&f.dir, "workdir", "w", "", "directory in the guest; the image's or the user's home by default")
	cmd.Flags().StringVarP(&f.user, "user", "u", "", "user in the guest: name or uid, perhaps with :group or :gid; the image's or root by default")
	cmd.Flags().StringArrayVarP(&f.env, "env", "e", nil, "NAME=VALUE for its environment, or NAME for the value here; may be repeated")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 0, "end it after this long, e.g. 30s (0: never)")
	return cmd
}

// execCode is the exit code for a command that banger could not run: what the tree said of it decides.
func execCode(err error) int {
	var r *refused
	switch {
	case errors.As(err, &r) && r.errno == syscall.ENOENT:
		return exitNoCommand
	case errors.As(err, &r) && r.errno == syscall.EACCES:
		return exitNotAllow
	}
	return exitNotRun
}

// refused is what a guest answered to a command.
type refused struct {
	error
	errno syscall.Errno
}

func (r *refused) Unwrap() error { return r.error }

// prepare tells the session what the flags say.
func (c *client) prepare(s *session, f *execFlags) error {
	var lines [][]string
	if f.dir != "" {
		lines = append(lines, []string{"dir", f.dir})
	}
	if f.user != "" {
		lines = append(lines, []string{"user", f.user})
	}
	if f.terminal {
		size := ""
		if out, ok := terminal(c.std.out); ok {
			if w, h, err := term.GetSize(int(out.Fd())); err == nil && w > 0 && h > 0 {
				size = fmt.Sprintf("%dx%d", w, h)
			}
		}
		lines = append(lines, []string{"tty", size})
		if kind := os.Getenv("TERM"); kind != "" {
			lines = append(lines, []string{"env", "TERM=" + kind})
		}
	}
	for _, e := range f.env {
		if !strings.Contains(e, "=") {
			e += "=" + os.Getenv(e)
		}
		lines = append(lines, []string{"env", e})
	}
	if f.timeout > 0 {
		lines = append(lines, []string{"timeout", f.timeout.String()})
	}
	if f.detach {
		lines = append(lines, []string{"detach"})
	}
	for _, l := range lines {
		if err := s.tell(l...); err != nil {
			return s.explain(err)
		}
	}
	return nil
}

// exec runs argv in a VM and gives how it ended as commandEnded, nil for 0.
func (c *client) exec(name string, argv []string, f *execFlags) error {
	s, err := c.newSession(name)
	if err != nil {
		return err
	}
	defer s.ctl.Close()
	if err := c.prepare(s, f); err != nil {
		return err
	}
	list, err := json.Marshal(argv)
	if err != nil {
		return &failure{exitNotRun, err}
	}
	caught := make(chan os.Signal, 16) // before it runs: none may end banger only
	signal.Notify(caught, handedOn...)
	defer signal.Stop(caught)
	if err := s.tell("argv", string(list)); err != nil {
		errno, _ := errnoOf(err).(syscall.Errno)
		return &failure{exitNotRun, &refused{s.explain(err), errno}}
	}
	if f.detach {
		return nil
	}
	return c.attach(s, f, caught)
}

// handedOn are the signals that the command gets in banger's place.
var handedOn = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH}

// attach connects a command that runs with banger's own input, output and signals, until it has ended and all that it printed is here.
func (c *client) attach(s *session, f *execFlags, caught <-chan os.Signal) error {
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
			return &failure{exitNotRun, fmt.Errorf("cannot use this terminal: %w", err)}
		}
		defer term.Restore(int(in.Fd()), old)
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() { // ends with this function
		for {
			select {
			case sig := <-caught:
				c.handOn(s, f, sig.(syscall.Signal))
			case <-ended:
				return
			}
		}
	}()
	go func() { // left to the end of the process: nobody can take a read of standard input back
		if f.input {
			_ = feed(data, c.std.in) // a command may leave what it is given
		}
		_ = s.tell("eof") // or has ended
	}()
	copied := make(chan error, 2)
	go func() { copied <- pump(c.std.out, data) }()
	go func() { copied <- pump(c.std.err, errs) }()
	for range 2 {
		if err := <-copied; err != nil {
			return explain("cannot read what it prints in "+s.vm, "", err)
		}
	}
	status, err := read(filepath.Join(s.at, "status"))
	if err != nil {
		return explain("cannot tell how it ended in "+s.vm, "", err)
	}
	return parseStatus(strings.TrimSpace(status))
}

// handOn gives the command a signal that banger got, or the terminal's new size. One that has ended needs neither.
func (c *client) handOn(s *session, f *execFlags, sig syscall.Signal) {
	if sig != unix.SIGWINCH {
		_ = s.tell("signal", strconv.Itoa(int(sig)))
		return
	}
	if out, ok := terminal(c.std.out); ok && f.terminal {
		if w, h, err := term.GetSize(int(out.Fd())); err == nil && w > 0 && h > 0 {
			_ = s.tell("resize", fmt.Sprintf("%dx%d", w, h))
		}
	}
}

// parseStatus makes banger's own end of what the file `status` says.
func parseStatus(status string) error {
	word, rest, _ := strings.Cut(status, " ")
	n, err := strconv.Atoi(rest)
	switch {
	case status == "timed out":
		return commandEnded(exitTimedOut)
	case word == "exited" && err == nil && n == 0:
		return nil
	case word == "exited" && err == nil:
		return commandEnded(n)
	case word == "killed" && err == nil:
		return commandEnded(exitSignalled + n)
	case word == "killed" && unix.SignalNum("SIG"+rest) != 0:
		return commandEnded(exitSignalled + int(unix.SignalNum("SIG"+rest)))
	}
	return &failure{exitNotRun, fmt.Errorf("cannot understand how it ended: %q", status)}
}

// feed writes what comes from in until its end, as much at once as there is.
func feed(to io.Writer, in io.Reader) error {
	_, err := io.CopyBuffer(plainWriter{to}, plainReader{in}, make([]byte, copySize))
	return err
}

// pump copies a stream of the tree. Where nobody reads the copy, the stream is read no more.
func pump(out io.Writer, from io.Reader) error {
	written := plainWriter{out}
	buf := make([]byte, copySize)
	for {
		n, err := from.Read(buf)
		if _, werr := written.Write(buf[:n]); werr != nil {
			return werr
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

func (c *client) proxyCmd() *cobra.Command {
	return &cobra.Command{
		Use: "proxy VM [PORT]", Short: "Connect standard input and output to a port of the guest, 22 by default", Args: cobra.RangeArgs(1, 2), ValidArgsFunction: c.complete(1),
		Long: "Connect standard input and output to a TCP port of the guest's loopback, 22 by default, through its agent: no route to the guest is needed.\nVM may be given as VM.vm, so that it serves as ssh's ProxyCommand; see `banger ssh-config`.",
		RunE: func(_ *cobra.Command, args []string) error {
			port := "22"
			if len(args) == 2 {
				port = args[1]
			}
			if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
				return fmt.Errorf("cannot connect to %q: give a port from 1 to 65535", port)
			}
			return c.proxy(strings.TrimSuffix(args[0], ".vm"), port)
		},
	}
}

// proxy passes bytes until the guest's side has ended.
func (c *client) proxy(name, port string) error {
	s, err := c.newSession(name)
	if err != nil {
		return err
	}
	defer s.ctl.Close()
	if err := s.tell("dial", port); err != nil {
		return s.explain(err)
	}
	data, err := s.open("data", os.O_RDWR)
	if err != nil {
		return err
	}
	defer data.Close()
	go func() { // left to the end of the process, as in attach
		_ = feed(data, c.std.in)
		_ = s.tell("eof")
	}()
	return explain("cannot read from port "+port+" of "+name, "", pump(c.std.out, data))
}

// sshConfig is a part of ssh_config(5); its verbs are banger, with its flags, and the mount.
const sshConfig = `# Made by banger ssh-config; put it into ~/.ssh/config, or include it there.
Host *.vm
	User root
	ProxyCommand %s proxy %%h %%p
	UserKnownHostsFile %s
	StrictHostKeyChecking yes
	UpdateHostKeys no
`

func (c *client) sshConfigCmd() *cobra.Command {
	return &cobra.Command{
		Use: "ssh-config", Short: "Print a part of ssh_config with which ssh finds the VMs as NAME.vm", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			program := "banger"
			if c.mount != defaultMount() || os.Getenv("BANGER_MOUNT") != "" {
				program += " --mount " + c.mount
			}
			_, err := fmt.Fprintf(c.std.out, sshConfig, program, filepath.Join(c.mount, "known_hosts"))
			return err
		},
	}
}
