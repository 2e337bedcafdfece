package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/internal/host"
	"banger/vmm/guest"

	"golang.org/x/sys/unix"
)

const (
	endOfText  = 0x04 // Ctrl-D, a terminal's end of input (VEOF of termios(3))
	killRounds = 10   // processes may fork during a search
)

// startExec starts a command of the host as the leader of a session of its own.
func (g *agent) startExec(r *guest.ExecRequest) (guest.Command, error) {
	if r.Dial != 0 {
		return dialLoopback(r.Dial)
	}
	if len(r.Argv) == 0 {
		return nil, fmt.Errorf("no command is given: %w", guest.ErrInvalid)
	}
	image := g.program
	if image == nil {
		image = new(guest.Program)
	}
	user, err := findAccount(cmp.Or(r.User, image.User))
	if err != nil {
		return nil, err
	}
	env := slices.Concat(user.environment(r.Cols > 0), image.Env, r.Env)
	cmd := &exec.Cmd{Args: r.Argv, Env: env, Dir: r.Dir}
	if cmd.Dir == "" {
		cmd.Dir = "/"
		for _, dir := range []string{image.Dir, user.home} {
			if dir != "" && isDir(dir) {
				cmd.Dir = dir
				break
			}
		}
	} else if !isDir(cmd.Dir) {
		return nil, fmt.Errorf("no directory %.128q is in the guest: %w", cmd.Dir, guest.ErrInvalid)
	}
	if cmd.Path, err = lookPath(r.Argv[0], cmd.Dir, lastValue(cmd.Env, "PATH")); err != nil {
		return nil, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true,
		Credential: &syscall.Credential{Uid: user.uid, Gid: user.gid, Groups: user.groups}}
	c := new(started)
	theirs, err := c.connect(cmd, r, int(user.uid))
	if err == nil {
		c.child, err = g.children.start(cmd)
	}
	for _, f := range theirs {
		f.Close()
	}
	if err != nil {
		c.close()
		return nil, notStarted(r.Argv[0], err)
	}
	return c, nil
}

// notStarted returns the error for a failed fork or execve (execve(2)).
func notStarted(name string, err error) error {
	kind := guest.ErrGone
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err // name stands for the path
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = guest.ErrNotFound
	case errors.Is(err, fs.ErrPermission):
		kind = guest.ErrAccess
	case errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EINVAL):
		kind = guest.ErrInvalid
	}
	return fmt.Errorf("cannot start %.128q in the guest: %v: %w", name, err, kind)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// lookPath finds a program as execvp(3) does, in the command's PATH and from its directory.
func lookPath(name, dir, path string) (string, error) {
	places := filepath.SplitList(path)
	if strings.Contains(name, "/") {
		places = []string{""}
	}
	found := fmt.Errorf("no program %.128q is in the guest: %w", name, guest.ErrNotFound)
	for _, p := range places {
		full := filepath.Join(p, name)
		if !filepath.IsAbs(full) {
			full = filepath.Join(dir, full)
		}
		info, err := os.Stat(full)
		switch {
		case err != nil || info.IsDir():
		case info.Mode()&0o111 == 0:
			found = fmt.Errorf("%.128q in the guest is not executable: %w", full, guest.ErrAccess)
		default:
			return full, nil
		}
	}
	return "", found
}

// lastValue returns the value of the last assignment to a variable.
func lastValue(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if value, ok := strings.CutPrefix(env[i], name+"="); ok {
			return value
		}
	}
	return ""
}

// started implements guest.Command.
type started struct {
	*child
	in        io.WriteCloser
	out, errs guest.ExecPipe
	terminal  *os.File // the master, which out is, too; nil without one
}

// connect makes the command's standard files. It returns the command's ends, for the caller to
// close.
func (c *started) connect(
	cmd *exec.Cmd, r *guest.ExecRequest, uid int,
) (theirs []*os.File, err error) {
	if r.Cols > 0 {
		tty, err := c.openTerminal(uid)
		if err != nil {
			return nil, fmt.Errorf("cannot make a terminal: %w", err)
		}
		c.Resize(r.Cols, r.Rows)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.SysProcAttr.Setctty, cmd.SysProcAttr.Ctty = true, 0
		return []*os.File{tty}, nil
	}
	if r.Detach {
		return nil, nil // os/exec takes /dev/null
	}
	stdin, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	theirs, c.in = append(theirs, stdin), in
	cmd.Stdin = stdin
	for _, output := range []struct {
		ours   *guest.ExecPipe
		theirs *io.Writer
	}{{&c.out, &cmd.Stdout}, {&c.errs, &cmd.Stderr}} {
		read, write, err := newOutPipe()
		if err != nil {
			return theirs, err
		}
		theirs = append(theirs, write)
		*output.ours, *output.theirs = read, write
	}
	return theirs, own(theirs, uid)
}

// own gives pipes to uid, which may then open them again, as /dev/stdout (runc, fixStdioPermissions
// of libcontainer/init_linux.go). They are root's already.
func own(pipes []*os.File, uid int) error {
	if uid == 0 {
		return nil
	}
	for _, f := range pipes {
		if err := f.Chown(uid, -1); err != nil {
			return err
		}
	}
	return nil
}

// openTerminal makes a pseudo-terminal (pts(4)) that uid owns, and returns the command's side.
func (c *started) openTerminal(uid int) (*os.File, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	c.terminal, c.out, c.in = master, master, &typist{master: master}
	var name string
	err = c.control(func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
		name = "/dev/pts/" + strconv.Itoa(n)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := os.Chown(name, uid, -1); err != nil {
		return nil, err
	}
	return os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
}

// control calls f with the master's descriptor. Reads of it can still be ended by a deadline.
func (c *started) control(f func(fd int) error) error {
	raw, err := c.terminal.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = f(int(fd)) })
	return errors.Join(err, failed)
}

func (c *started) close() {
	for _, f := range []guest.ExecPipe{c.out, c.errs} {
		if f != nil {
			f.Close()
		}
	}
	if c.in != nil && c.terminal == nil {
		c.in.Close()
	}
}

func (c *started) PID() int               { return c.pid }
func (c *started) Input() io.WriteCloser  { return c.in }
func (c *started) Output() guest.ExecPipe { return c.out }
func (c *started) Errors() guest.ExecPipe { return c.errs }

func (c *started) Signal(signal int) { c.signal(unix.Signal(signal)) }

// Resize sets the terminal's size. The kernel sends SIGWINCH to the processes in it.
func (c *started) Resize(cols, rows int) {
	if c.terminal == nil {
		return
	}
	_ = c.control(func(fd int) error { // closed already, perhaps
		size := &unix.Winsize{Col: uint16(cols), Row: uint16(rows)}
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size)
	})
}

func (c *started) Wait() guest.ExecStatus {
	<-c.done
	if c.status.Signaled() {
		return guest.ExecStatus{Signal: int(c.status.Signal())}
	}
	return guest.ExecStatus{Code: c.status.ExitStatus()}
}

func (c *started) HangUp() {
	for _, pid := range c.session() {
		unix.Kill(pid, unix.SIGHUP)
		unix.Kill(pid, unix.SIGCONT)
	}
}

func (c *started) Kill() {
	for range killRounds {
		pids := c.session()
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		if len(pids) == 0 {
			return
		}
	}
}

func (c *started) Left() bool { return len(c.session()) > 0 }

// session returns the running processes of the command's session (proc(5), stat).
func (c *started) session() []int {
	var running []int
	for _, pid := range pids() {
		f := host.StatFields(readFile("/proc/" + strconv.Itoa(pid) + "/stat"))
		if len(f) > 3 && !strings.Contains("ZX", string(f[0])) && string(f[3]) == strconv.Itoa(c.pid) {
			running = append(running, pid)
		}
	}
	return running
}

// typist is a terminal's input. It has no end of its own, so that Close types one.
type typist struct {
	master *os.File
	once   sync.Once
}

func (t *typist) Write(p []byte) (int, error) { return t.master.Write(p) }

func (t *typist) Close() error {
	t.once.Do(func() {
		// The command may have stopped reading.
		t.master.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		t.master.Write([]byte{endOfText})
	})
	return nil
}
