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
	killAfter = 2 * time.Second        // between asking a command to end and killing it
	drainWait = 500 * time.Millisecond // how long an output may be silent once its command has ended: something in the background may hold it
	leftLook  = 50 * time.Millisecond  // between looks whether what was asked to end has done so
	copySize  = 32<<10 - frameHeader   // what goes to the host in one buffer of the driver (drivers/char/virtio_console.c, port_fops_write)
)

// Command is a command that runs, or what behaves like one. Its methods may be called from many goroutines.
type Command interface {
	PID() int
	Input() io.WriteCloser // nil for none, as are the next two
	Output() ExecPipe
	Errors() ExecPipe
	// Signal sends it to the command and what belongs to it; once it has ended, nothing happens.
	Signal(signal int)
	// HangUp tells all that the command has started that the host is gone; Kill ends them.
	HangUp()
	Kill()
	// Left reports whether any of it, or of what it has started, still runs.
	Left() bool
	Resize(cols, rows int)
	// Wait returns when it has ended; called once.
	Wait() ExecStatus
}

// ExecPipe is an output.
type ExecPipe interface {
	io.ReadCloser
	SetReadDeadline(time.Time) error
}

// ExecServer serves the streams of commands in a guest (vmm/exec.go has the protocol), MaxExecs of them at once.
type ExecServer struct {
	start func(*ExecRequest) (Command, error) // ends with ErrInvalid, ErrNotFound, ErrAccess or another error

	mu       sync.Mutex // guards what follows
	running  int
	meetings map[string]*meeting // by the request's ID
}

// meeting is where the streams of a command come together, in whichever order.
type meeting struct {
	streams map[string]chan net.Conn // by path; one each
	over    chan struct{}            // closed when nobody will take them any more
}

// NewExecServer serves commands that start starts.
func NewExecServer(start func(*ExecRequest) (Command, error)) *ExecServer {
	return &ExecServer{start: start, meetings: make(map[string]*meeting)}
}

// Streams are for Handler.
func (x *ExecServer) Streams() map[string]StreamHandler {
	all := map[string]StreamHandler{ExecControl: x.control}
	for _, path := range []string{ExecInput, ExecOutput, ExecErrors} {
		all[path] = func(request json.RawMessage) (func(net.Conn), error) { return x.data(path, request) }
	}
	return all
}

// meet gives the meeting of that ID. Whoever comes first makes it; it is over when the command is, or after a while without one.
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

// data hands a stream over to its command.
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

// forget ends a meeting; again, it does nothing.
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
		c := &controlled{control: conn, request: &r, meeting: m, inputEnd: make(chan int64, 1), gone: make(chan struct{}), exited: make(chan struct{})}
		command, err := x.begin(&r)
		if err != nil {
			c.tell(ExecRefusal(err))
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
		return nil, fmt.Errorf("%d commands run in the guest, no more at once: %w", MaxExecs, ErrBusy)
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

// controlled is a command with its streams.
type controlled struct {
	Command
	control  net.Conn
	request  *ExecRequest
	meeting  *meeting
	inputEnd chan int64    // where the host says that the input ends
	gone     chan struct{} // closed when the host has let go
	exited   chan struct{}

	telling sync.Mutex // held for each event, so that they do not mix
}

// tell sends an event; that the host has gone is found out by who reads.
func (c *controlled) tell(e ExecEvent) {
	b, err := json.Marshal(&e)
	if err != nil {
		return // only of a type that JSON does not know
	}
	c.telling.Lock()
	defer c.telling.Unlock()
	_, _ = c.control.Write(append(b, '\n'))
}

// run sees the command to its end, and returns when nothing of it is left here.
func (c *controlled) run() {
	c.tell(ExecEvent{PID: c.PID()})
	var hearing, watching, streams sync.WaitGroup
	start := func(group *sync.WaitGroup, f func()) {
		group.Add(1)
		go func() {
			defer group.Done()
			f()
		}()
	}
	start(&hearing, c.hear)
	timedOut := false
	start(&watching, func() { timedOut = c.watch() })
	start(&streams, c.feed)
	start(&streams, func() { c.drain(ExecOutput, c.Output()) })
	start(&streams, func() { c.drain(ExecErrors, c.Errors()) })

	status := c.Wait()
	close(c.exited)
	watching.Wait()
	status.TimedOut = timedOut
	c.tell(ExecEvent{Exit: &status})
	for _, pipe := range []ExecPipe{c.Output(), c.Errors()} {
		if pipe != nil {
			_ = pipe.SetReadDeadline(time.Now().Add(drainWait)) // closed already, perhaps
		}
	}
	streams.Wait()
	c.control.Close()
	hearing.Wait()
}

// hear obeys the host until that lets go.
func (c *controlled) hear() {
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
			default: // said already
			}
		}
	}
}

// watch ends the command when its time is over, which it reports, or the host has let go of it.
func (c *controlled) watch() (timedOut bool) {
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
		case <-time.After(leftLook):
		}
		if exited == nil && !c.Left() {
			return timedOut
		}
	}
}

// stream waits for the stream of that path, nil if the host has let go. It is closed when the host does, or until stop is closed.
func (c *controlled) stream(path string, stop <-chan struct{}) net.Conn {
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

// feed passes the input on. What ends before the host said that it does is no end of the input: the command waits for the rest until it is hung up.
func (c *controlled) feed() {
	in := c.Input()
	if in == nil {
		return
	}
	closed := make(chan struct{})
	go func() { // ends with the command; frees a write that nobody reads
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
				c.tell(ExecEvent{Ended: ExecInput, Bytes: n})
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

// drain passes an output on until its end.
func (c *controlled) drain(path string, pipe ExecPipe) {
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
			_ = pipe.SetReadDeadline(time.Now().Add(drainWait)) // for what is still to come
		default:
		}
	}
	conn.Close()
	c.tell(ExecEvent{Ended: path, Bytes: n})
}
