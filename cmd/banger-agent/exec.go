package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/vmm/guest"

	"golang.org/x/sys/unix"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	dialWait    = 5 * time.Second
	endOfText   = 0x04 // Ctrl-D, a terminal's end of input (VEOF of termios(3))
	killRounds  = 10   // processes may fork while they are being found
)

// startExec starts what the host asks for; each command is the leader of a session of its own.
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
	who, err := findAccount(cmp.Or(r.User, image.User))
	if err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{Args: r.Argv, Env: slices.Concat(who.environment(r.Cols > 0), image.Env, r.Env), Dir: r.Dir}
	if cmd.Dir == "" {
		cmd.Dir = "/"
		for _, dir := range []string{image.Dir, who.home} {
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
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: who.uid, Gid: who.gid, Groups: who.groups}}
	c := &started{proc: g.proc}
	theirs, err := c.connect(cmd, r, int(who.uid))
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

// notStarted says what it means that fork or execve failed (execve(2)).
func notStarted(name string, err error) error {
	kind := guest.ErrGone
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

// lastValue gives the value of a variable of which the last assignment holds.
func lastValue(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if value, ok := strings.CutPrefix(env[i], name+"="); ok {
			return value
		}
	}
	return ""
}

// account is whom a command runs as.
type account struct {
	uid, gid   uint32
	groups     []uint32
	name, home string
}

// findAccount reads a user, by name or number, and perhaps a group behind a colon, whose only group that is then; root for nothing. Numbers need no
// entry in /etc/passwd or /etc/group.
func findAccount(text string) (*account, error) {
	id, group, withGroup := strings.Cut(cmp.Or(text, "0"), ":")
	bad := fmt.Errorf("no user %.64q is in the guest: %w", id, guest.ErrInvalid)
	uid, err := strconv.ParseUint(id, 10, 32)
	var u *user.User
	if err == nil {
		u, _ = user.LookupId(id) // one without an entry has no name and no home
	} else if u, err = user.Lookup(id); err != nil {
		return nil, bad
	} else if uid, err = strconv.ParseUint(u.Uid, 10, 32); err != nil {
		return nil, bad
	}
	a := &account{uid: uint32(uid), gid: uint32(uid), name: id, home: "/"}
	if a.uid == 0 {
		a.name, a.home = "root", "/root"
	}
	if u != nil {
		a.name, a.home = u.Username, u.HomeDir
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, bad
		}
		a.gid = uint32(gid)
		if !withGroup {
			ids, _ := u.GroupIds() // none in a guest without /etc/group
			for _, s := range ids {
				if n, err := strconv.ParseUint(s, 10, 32); err == nil {
					a.groups = append(a.groups, uint32(n))
				}
			}
		}
	}
	if withGroup && group != "" {
		gid, err := strconv.ParseUint(group, 10, 32)
		if err != nil {
			g, err := user.LookupGroup(group)
			if err == nil {
				gid, err = strconv.ParseUint(g.Gid, 10, 32)
			}
			if err != nil {
				return nil, fmt.Errorf("no group %.64q is in the guest: %w", group, guest.ErrInvalid)
			}
		}
		a.gid = uint32(gid)
	}
	return a, nil
}

// environment is what a command gets beside what its image and the host give, as from login(1).
func (a *account) environment(terminal bool) []string {
	env := []string{"PATH=" + defaultPath, "HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name, "SHELL=/bin/sh"}
	if lang := os.Getenv("LANG"); lang != "" {
		env = append(env, "LANG="+lang)
	}
	if terminal {
		env = append(env, "TERM=xterm")
	}
	return env
}

// started implements guest.Command.
type started struct {
	*child
	proc      string // /proc
	in        io.WriteCloser
	out, errs guest.ExecPipe
	terminal  *os.File // the master, which out is, too; nil without one
}

// connect makes the command's standard files and gives the ends that are its own, for the caller to close.
func (c *started) connect(cmd *exec.Cmd, r *guest.ExecRequest, uid int) (theirs []*os.File, err error) {
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
	return theirs, nil
}

// openTerminal makes a pseudo-terminal (pts(4)) that belongs to uid, and gives the side for the command.
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

// control calls f with the master's descriptor, which stays one that reads can be taken away from.
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

// Resize sets the terminal's size, of which the kernel tells who runs in it (SIGWINCH).
func (c *started) Resize(cols, rows int) {
	if c.terminal == nil {
		return
	}
	_ = c.control(func(fd int) error { // closed already, perhaps
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(cols), Row: uint16(rows)})
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

// session gives the processes of the command's session that run (proc(5), stat).
func (c *started) session() []int {
	var pids []int
	for _, pid := range (&agent{proc: c.proc}).pids() {
		stat := readFile(filepath.Join(c.proc, strconv.Itoa(pid), "stat"))
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(f) > 3 && f[0] != "Z" && f[0] != "X" && f[3] == strconv.Itoa(c.pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// typist is a terminal's input, which has no end of its own: Close types one.
type typist struct {
	master *os.File
	once   sync.Once
}

func (t *typist) Write(p []byte) (int, error) { return t.master.Write(p) }

func (t *typist) Close() error {
	t.once.Do(func() {
		t.master.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)) // nobody may read it any more
		t.master.Write([]byte{endOfText})
	})
	return nil
}

// dialLoopback connects to a port of the guest itself, by IPv4 or else IPv6.
func dialLoopback(port int) (guest.Command, error) {
	d := net.Dialer{Timeout: dialWait}
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := d.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err == nil {
			return &connection{conn: conn.(*net.TCPConn), ended: make(chan struct{})}, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("nothing in the guest can be reached on port %d: %v: %w", port, errs[0], guest.ErrNotFound)
}

// connection implements guest.Command for a connection to the guest's loopback: it ends when the far end has said all.
type connection struct {
	conn  *net.TCPConn
	ended chan struct{}
	once  sync.Once
}

func (c *connection) PID() int               { return 0 }
func (c *connection) Input() io.WriteCloser  { return halfInput{c.conn} }
func (c *connection) Output() guest.ExecPipe { return c }
func (c *connection) Errors() guest.ExecPipe { return nil }
func (c *connection) Signal(int)             {}
func (c *connection) Resize(int, int)        {}
func (c *connection) HangUp()                { c.Kill() }
func (c *connection) Left() bool             { return false }

func (c *connection) Kill() { c.conn.Close() }

func (c *connection) Wait() guest.ExecStatus {
	<-c.ended
	return guest.ExecStatus{}
}

func (c *connection) Read(p []byte) (int, error) { return c.conn.Read(p) }

func (c *connection) SetReadDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

// Close is the end of the output and, since nobody would answer any more, of the connection.
func (c *connection) Close() error {
	c.once.Do(func() { close(c.ended) })
	return c.conn.Close()
}

// halfInput is the connection's input: its end leaves the output open.
type halfInput struct{ *net.TCPConn }

func (h halfInput) Close() error { return h.CloseWrite() }
