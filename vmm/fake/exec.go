package fake

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
	"banger/vmm/guest/sftp"

	"golang.org/x/sys/unix"
)

// Stream implements guest.Streamer. The agent's real handlers serve it, in this process.
func (g agent) Stream(ctx context.Context, path string, request any) (net.Conn, error) {
	if err := g.answer(ctx); err != nil {
		return nil, err
	}
	b, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	handler := g.m.handlers()[path]
	if handler == nil {
		return nil, fmt.Errorf("the agent has no stream %s: %w", path, vmm.ErrUnsupported)
	}
	serve, err := handler(b)
	if err != nil {
		return nil, err
	}
	host, far := net.Pipe()
	if path == sftp.Stream {
		host, far = g.still(host, far)
	}
	if !g.m.addConn(host) {
		host.Close()
		far.Close()
		return nil, vmm.ErrNotRunning
	}
	go func() { // ends with the stream, at the latest with the machine
		serve(far)
		g.m.dropConn(host)
	}()
	return host, nil
}

// handlers returns the agent's handlers. The first call makes them, to save the memory of idle
// machines.
func (m *machine) handlers() map[string]guest.StreamHandler {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.streams == nil {
		m.streams = guest.NewExecServer(startExec).Streams()
		m.streams[sftp.Stream] = m.serveFiles
	}
	return m.streams
}

// addConn records a stream that the machine's end closes. It returns false after that end.
func (m *machine) addConn(c net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return false
	}
	if m.conns == nil {
		m.conns = make(map[net.Conn]struct{})
	}
	m.conns[c] = struct{}{}
	return true
}

func (m *machine) dropConn(c net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.conns, c)
}

// breakConnsLocked closes all streams.
func (m *machine) breakConnsLocked() {
	for c := range m.conns {
		c.Close()
	}
}

// startExec starts built-in commands.
func startExec(r *guest.ExecRequest) (guest.Command, error) {
	switch {
	case r.Dial != 0:
		return nil, fmt.Errorf("nothing in the guest can be reached on port %d: %w",
			r.Dial, vmm.ErrNotFound)
	case len(r.Argv) == 0:
		return nil, fmt.Errorf("no command is given: %w", vmm.ErrInvalid)
	case r.User != "" && r.User != "root" && strings.Trim(r.User, "0123456789:") != "":
		return nil, fmt.Errorf("no user %.64q is in the guest: %w", r.User, vmm.ErrInvalid)
	case r.Dir != "" && r.Dir != "/" && r.Dir != "/tmp":
		return nil, fmt.Errorf("no directory %.128q is in the guest: %w", r.Dir, vmm.ErrInvalid)
	}
	lines := [][]string{r.Argv}
	if len(r.Argv) == 3 && r.Argv[0] == "/bin/sh" && r.Argv[1] == "-c" {
		lines = nil
		for _, line := range strings.Split(r.Argv[2], ";") {
			lines = append(lines, strings.Fields(line))
		}
	} else if words[r.Argv[0]] == nil {
		return nil, fmt.Errorf("no program %.128q is in the guest: %w", r.Argv[0], vmm.ErrNotFound)
	}
	p := &process{request: r, cols: r.Cols, rows: r.Rows}
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	if !r.Detach {
		p.stdin, p.in = net.Pipe()
		p.out, p.stdout = net.Pipe()
		p.errs, p.stderr = net.Pipe()
		if r.Cols > 0 {
			p.stderr = p.stdout
		}
		context.AfterFunc(p.ctx, p.closeOwn)
	}
	p.done.Add(1)
	go func() { // ends when it is killed, at the latest
		defer p.done.Done()
		p.status = p.run(lines)
		p.cancel(nil)
	}()
	return p, nil
}

// process implements guest.Command.
type process struct {
	request               *guest.ExecRequest
	ctx                   context.Context // ends with the process; its cause is the signal
	cancel                context.CancelCauseFunc
	in, out, errs         net.Conn // the agent's ends
	stdin, stdout, stderr net.Conn
	done                  sync.WaitGroup
	status                guest.ExecStatus

	mu         sync.Mutex // guards what follows
	cols, rows int
}

// killed is the signal that ended a process, as the cause of its context.
type killed int

func (k killed) Error() string { return "killed by signal " + strconv.Itoa(int(k)) }

func (p *process) closeOwn() {
	for _, c := range []net.Conn{p.stdin, p.stdout, p.stderr} {
		c.Close()
	}
}

func (p *process) PID() int { return 100 }

func (p *process) Input() io.WriteCloser {
	if p.in == nil {
		return nil
	}
	return p.in
}

func (p *process) Output() guest.ExecPipe { return pipe(p.out) }

func (p *process) Errors() guest.ExecPipe {
	if p.request.Cols > 0 {
		return nil
	}
	return pipe(p.errs)
}

func pipe(c net.Conn) guest.ExecPipe {
	if c == nil {
		return nil
	}
	return c
}

func (p *process) Signal(signal int) {
	switch unix.Signal(signal) {
	case unix.SIGCHLD, unix.SIGCONT, unix.SIGURG, unix.SIGWINCH:
		// Ignored by default (signal(7)).
	default:
		p.cancel(killed(signal))
	}
}

func (p *process) HangUp() { p.Signal(int(unix.SIGHUP)) }
func (p *process) Kill()   { p.Signal(int(unix.SIGKILL)) }

func (p *process) Left() bool { return p.ctx.Err() == nil }

func (p *process) Resize(cols, rows int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cols, p.rows = cols, rows
}

func (p *process) Wait() guest.ExecStatus {
	p.done.Wait()
	return p.status
}

// run executes the lines in sequence.
func (p *process) run(lines [][]string) guest.ExecStatus {
	code := 0
	for _, line := range lines {
		if len(line) == 0 {
			continue
		}
		out := p.stdout
		if line[len(line)-1] == ">&2" {
			out, line = p.stderr, line[:len(line)-1]
		}
		word := words[line[0]]
		exits := line[0] == "exit"
		if word == nil {
			word, out, line, exits = notFound, p.stderr, line[:1], false
		}
		var text string
		text, code = word(p, line)
		if text != "" && out != nil {
			io.WriteString(out, text) // nobody may read it any more
		}
		if k, ok := context.Cause(p.ctx).(killed); ok {
			return guest.ExecStatus{Signal: int(k)}
		}
		if exits {
			break
		}
	}
	return guest.ExecStatus{Code: code & 0xff}
}

func notFound(_ *process, line []string) (string, int) { return line[0] + ": not found\n", 127 }

// words are the programs of a fake guest. Each returns its output and its exit code.
var words map[string]func(p *process, line []string) (string, int)

func init() {
	words = map[string]func(p *process, line []string) (string, int){
		"true":  func(*process, []string) (string, int) { return "", 0 },
		"false": func(*process, []string) (string, int) { return "", 1 },
		"echo":  func(_ *process, line []string) (string, int) { return strings.Join(line[1:], " ") + "\n", 0 },
		"cat":   (*process).cat,
		"yes":   (*process).yes,
		"sleep": (*process).sleep,
		"exit":  func(_ *process, line []string) (string, int) { return "", number(line, 0) },
		"kill":  (*process).kill,
		"pwd": func(p *process, _ []string) (string, int) {
			if p.request.Dir == "" {
				return "/\n", 0
			}
			return p.request.Dir + "\n", 0
		},
		"env":  (*process).env,
		"stty": (*process).stty,
	}
}

func number(line []string, otherwise int) int {
	if len(line) > 1 {
		if n, err := strconv.Atoi(line[1]); err == nil {
			return n
		}
	}
	return otherwise
}

func (p *process) cat([]string) (string, int) {
	if p.stdin != nil {
		io.Copy(p.stdout, p.stdin) // ends with either
	}
	return "", 0
}

func (p *process) yes(line []string) (string, int) {
	text := strings.Repeat(strings.Join(slices.Concat(line[1:], []string{"y"})[:1], " ")+"\n", 1000)
	for p.stdout != nil {
		if _, err := io.WriteString(p.stdout, text); err != nil {
			break
		}
	}
	return "", 1
}

func (p *process) sleep(line []string) (string, int) {
	seconds, err := strconv.ParseFloat(strings.Join(line[1:], ""), 64)
	if err != nil {
		return "", 1
	}
	t := time.NewTimer(time.Duration(seconds * float64(time.Second)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.ctx.Done():
	}
	return "", 0
}

// kill implements `kill -SIGNAL $$` only; the guest has no other process.
func (p *process) kill(line []string) (string, int) {
	if len(line) != 3 || line[2] != "$$" {
		return "", 1
	}
	signal, err := guest.ParseSignal(strings.TrimPrefix(line[1], "-"))
	if err != nil {
		return "", 1
	}
	p.Signal(signal)
	return "", 0
}

// env prints the variables of the request; the last of a name wins.
func (p *process) env([]string) (string, int) {
	text := ""
	for i, e := range p.request.Env {
		name, _, _ := strings.Cut(e, "=")
		again := func(later string) bool { return strings.HasPrefix(later, name+"=") }
		if !slices.ContainsFunc(p.request.Env[i+1:], again) {
			text += e + "\n"
		}
	}
	return text, 0
}

// stty implements `stty size` only.
func (p *process) stty([]string) (string, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cols == 0 {
		return "", 1
	}
	return fmt.Sprintf("%d %d\n", p.rows, p.cols), 0
}
