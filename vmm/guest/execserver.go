package guest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	killAfter = 2 * time.Second // between asking a command to end and killing it
	// drainWait is how long an output may be silent once its command has ended. Processes in the
	// background may keep it open.
	drainWait = 500 * time.Millisecond
	leftPause = 50 * time.Millisecond // between looks whether processes are left
	// copySize, with its header, fills one buffer of the driver (drivers/char/virtio_console.c,
	// port_fops_write).
	copySize = 32<<10 - frameHeader
)

// Command is a running command, or a connection that behaves like one. Many goroutines may use it.
type Command interface {
	PID() int
	Input() io.WriteCloser // nil for none, as are the next two
	Output() ExecPipe
	Errors() ExecPipe
	// Signal sends a signal to the command and its processes. After the end it does nothing.
	Signal(signal int)
	// HangUp sends SIGHUP to everything that the command has started, and Kill SIGKILL.
	HangUp()
	Kill()
	// Left reports whether any of these processes still runs.
	Left() bool
	Resize(cols, rows int)
	// Wait returns when the command has ended. It is called once.
	Wait() ExecStatus
}

// ExecPipe is an output.
type ExecPipe interface {
	io.ReadCloser
	SetReadDeadline(time.Time) error
}

// ExecServer is the agent's side of commands, up to MaxExecs at once (exec.go has the protocol).
type ExecServer struct {
	start func(*ExecRequest) (Command, error)

	// Guarded by mu.
	mu       sync.Mutex
	running  int
	meetings map[string]*meeting // by the request's ID
}

// meeting brings together the streams of a command, which arrive in any order.
type meeting struct {
	streams map[string]chan net.Conn // by path; each receives one
	over    chan struct{}            // closed when no more streams are received
}

// NewExecServer returns a server of the commands that start starts. Errors of start that wrap
// ErrInvalid, ErrNotFound, ErrAccess or ErrBusy do so on the host, too.
func NewExecServer(start func(*ExecRequest) (Command, error)) *ExecServer {
	return &ExecServer{start: start, meetings: make(map[string]*meeting)}
}

// Streams returns the handlers of the streams, for [Handler].
func (x *ExecServer) Streams() map[string]StreamHandler {
	all := map[string]StreamHandler{ExecControl: x.control}
	for _, path := range []string{ExecInput, ExecOutput, ExecErrors} {
		all[path] = func(request json.RawMessage) (func(net.Conn), error) {
			return x.data(path, request)
		}
	}
	return all
}

// meet returns the meeting of an ID, which the first stream makes. The meeting ends with its
// command, or after ExecStartWait without one.
func (x *ExecServer) meet(id string) *meeting {
	x.mu.Lock()
	defer x.mu.Unlock()
	m := x.meetings[id]
	if m == nil {
		m = &meeting{streams: make(map[string]chan net.Conn), over: make(chan struct{})}
		for _, path := range []string{ExecInput, ExecOutput, ExecErrors} {
			m.streams[path] = make(chan net.Conn)
		}
		x.meetings[id] = m
	}
	return m
}

// data hands a stream to its command.
func (x *ExecServer) data(path string, request json.RawMessage) (func(net.Conn), error) {
	var r ExecRequest
	if err := json.Unmarshal(request, &r); err != nil {
		return nil, err
	}
	m := x.meet(r.ID)
	return func(conn net.Conn) {
		late := time.NewTimer(ExecStartWait)
		defer late.Stop()
		select {
		case m.streams[path] <- conn:
			return
		case <-m.over:
		case <-late.C:
			x.forget(r.ID, m)
		}
		conn.Close()
	}, nil
}

// forget ends a meeting. Further calls do nothing.
func (x *ExecServer) forget(id string, m *meeting) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.meetings[id] == m {
		delete(x.meetings, id)
		close(m.over)
	}
}

func (x *ExecServer) control(request json.RawMessage) (func(net.Conn), error) {
	var r ExecRequest
	if err := json.Unmarshal(request, &r); err != nil {
		return nil, err
	}
	m := x.meet(r.ID)
	return func(conn net.Conn) {
		defer conn.Close()
		defer x.forget(r.ID, m)
		c := &servedCommand{
			control: conn, request: &r, meeting: m,
			inputEnd: make(chan int64, 1), gone: make(chan struct{}), exited: make(chan struct{}),
		}
		command, err := x.begin(&r)
		if err != nil {
			c.send(ExecRefusal(err))
			return
		}
		defer x.end()
		c.Command = command
		c.run()
	}, nil
}

// begin starts a command unless too many run.
func (x *ExecServer) begin(r *ExecRequest) (Command, error) {
	x.mu.Lock()
	if x.running >= MaxExecs {
		x.mu.Unlock()
		return nil, fmt.Errorf("%d commands run in the guest already: %w", MaxExecs, ErrBusy)
	}
	x.running++
	x.mu.Unlock()
	command, err := x.start(r)
	if err != nil {
		x.end()
	}
	return command, err
}

func (x *ExecServer) end() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.running--
}

// servedCommand is a command with its streams.
type servedCommand struct {
	Command
	control  net.Conn
	request  *ExecRequest
	meeting  *meeting
	inputEnd chan int64    // receives the length of the input from the host
	gone     chan struct{} // closed when the control stream has ended
	exited   chan struct{}

	sending sync.Mutex // held for each event, so that they do not mix
}

// send sends an event. Its errors are found by receive.
func (c *servedCommand) send(e ExecEvent) {
	b, err := json.Marshal(&e)
	if err != nil {
		return // never: JSON knows the type
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	_, _ = c.control.Write(append(b, '\n'))
}

// run serves the command until it and its streams have ended.
func (c *servedCommand) run() {
	c.send(ExecEvent{PID: c.PID()})
	var receiving, watching, streams sync.WaitGroup
	receiving.Go(c.receive)
	timedOut := false
	watching.Go(func() { timedOut = c.watch() })
	streams.Go(c.feed)
	streams.Go(func() { c.drain(ExecOutput, c.Output()) })
	streams.Go(func() { c.drain(ExecErrors, c.Errors()) })

	status := c.Wait()
	close(c.exited)
	watching.Wait()
	status.TimedOut = timedOut
	c.send(ExecEvent{Exit: &status})
	for _, pipe := range []ExecPipe{c.Output(), c.Errors()} {
		if pipe != nil {
			_ = pipe.SetReadDeadline(time.Now().Add(drainWait)) // closed already, perhaps
		}
	}
	streams.Wait()
	c.control.Close()
	receiving.Wait()
}

// receive carries out the host's events until the control stream ends.
func (c *servedCommand) receive() {
	defer close(c.gone)
	r := bufio.NewReaderSize(c.control, MaxExecEvent)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		var e ExecEvent
		if json.Unmarshal(line, &e) != nil {
			return
		}
		switch {
		case e.Signal != 0:
			c.Signal(e.Signal)
		case e.Cols > 0 && e.Rows > 0:
			c.Resize(e.Cols, e.Rows)
		case e.EOF != nil:
			select {
			case c.inputEnd <- *e.EOF:
			default: // a repeated event
			}
		}
	}
}

// watch ends the command after its timeout, which it reports, or with the control stream.
func (c *servedCommand) watch() (timedOut bool) {
	var over <-chan time.Time
	if c.request.Timeout > 0 {
		t := time.NewTimer(c.request.Timeout)
		defer t.Stop()
		over = t.C
	}
	gone := c.gone
	if c.request.Detach {
		gone = nil
	}
	select {
	case <-c.exited:
		return false
	case <-over:
		timedOut = true
		c.Signal(int(unix.SIGTERM))
	case <-gone:
		c.HangUp()
	}
	kill := time.NewTimer(killAfter)
	defer kill.Stop()
	exited := c.exited
	for {
		select {
		case <-exited:
			exited = nil
		case <-kill.C:
			c.Kill()
			return timedOut
		case <-time.After(leftPause):
		}
		if exited == nil && !c.Left() {
			return timedOut
		}
	}
}

// stream waits for the stream of that path, and returns nil when stop is closed or the control
// stream ends before. Both close the stream, too.
func (c *servedCommand) stream(path string, stop <-chan struct{}) net.Conn {
	select {
	case conn := <-c.meeting.streams[path]:
		go func() { // ends with stop, at the latest with the control stream
			select {
			case <-stop:
			case <-c.gone:
			}
			conn.Close()
		}()
		return conn
	case <-stop:
	case <-c.gone:
	}
	return nil
}

// feed copies the input to the command. A stream that ends early does not end the input: the
// command waits for the rest until SIGHUP.
func (c *servedCommand) feed() {
	in := c.Input()
	if in == nil {
		return
	}
	closed := make(chan struct{})
	go func() { // ends with the command, and a write that is not read with it
		<-c.exited
		in.Close()
		close(closed)
	}()
	defer func() { <-closed }()
	conn := c.stream(ExecInput, c.exited)
	if conn == nil {
		return
	}
	defer conn.Close()
	var n int64
	for buf := make([]byte, copySize); ; {
		k, err := conn.Read(buf)
		if k > 0 {
			if _, err := in.Write(buf[:k]); err != nil {
				c.send(ExecEvent{Ended: ExecInput, Bytes: n})
				return
			}
			n += int64(k)
		}
		if err != nil {
			break
		}
	}
	select {
	case end := <-c.inputEnd:
		if end == n {
			in.Close()
		}
	case <-c.exited:
	case <-c.gone:
	}
}

// drain copies an output to the host until its end.
func (c *servedCommand) drain(path string, pipe ExecPipe) {
	if pipe == nil {
		return
	}
	defer pipe.Close()
	done := make(chan struct{})
	defer close(done)
	conn := c.stream(path, done)
	if conn == nil {
		return
	}
	defer conn.Close()
	var n int64
	for buf := make([]byte, copySize); ; {
		k, err := pipe.Read(buf)
		if k > 0 {
			if _, err := conn.Write(buf[:k]); err != nil {
				return
			}
			n += int64(k)
		}
		if err != nil {
			break
		}
		select {
		case <-c.exited:
			_ = pipe.SetReadDeadline(time.Now().Add(drainWait)) // for the last bytes
		default:
		}
	}
	conn.Close()
	c.send(ExecEvent{Ended: path, Bytes: n})
}
