package guest

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Exec is the host's side of a command that was started in a guest, or of a connection into one.
// Many goroutines may use it; the starter closes it. The guest is not trusted: it ends the
// connection by breaking the protocol.
type Exec struct {
	// Immutable. All streams but control are nil where there is no such stream.
	agent                          Agent
	control, stdin, stdout, stderr *execStream

	// Guarded by the turn of stdin's writes.
	written    int64 // bytes of the input
	inputEnded bool

	// Each is closed once, by follow.
	inputOver chan struct{} // the guest reads no more input
	done      chan struct{} // status and failure are valid
	followed  chan struct{} // no more events arrive

	status    ExecStatus
	failure   error
	stdoutEnd outputEnd
	stderrEnd outputEnd
}

// outputEnd is the end of an output, as the guest reports it. bytes is valid once known is closed.
type outputEnd struct {
	known chan struct{}
	bytes int64
}

// StartExec starts a command in the guest and returns when it runs. It fails with ErrUnsupported
// for an agent without streams, with the errors of Streamer, and with those of the guest:
// ErrInvalid (no such user or directory), ErrNotFound (no such command or listener), ErrAccess and
// ErrBusy (MaxExecs).
func StartExec(ctx context.Context, g Agent, r ExecRequest) (*Exec, error) {
	s, ok := g.(Streamer)
	if !ok {
		return nil, fmt.Errorf("its agent runs no commands: %w", ErrUnsupported)
	}
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	r.ID = hex.EncodeToString(id[:])
	if b, err := json.Marshal(&r); err != nil || len(b) > MaxExecRequest {
		return nil, fmt.Errorf("a command, its arguments and its environment may have %d bytes: %w",
			MaxExecRequest, ErrTooBig)
	}
	e := &Exec{
		agent:     g,
		inputOver: make(chan struct{}),
		done:      make(chan struct{}),
		followed:  make(chan struct{}),
		stdoutEnd: outputEnd{known: make(chan struct{})},
		stderrEnd: outputEnd{known: make(chan struct{})},
	}
	ctx, cancel := context.WithTimeout(ctx, ExecStartWait)
	defer cancel()
	events, err := e.open(ctx, s, &r)
	if err != nil {
		e.closeStreams()
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("the agent did not start it: %w", ErrTimeout)
		}
		return nil, err
	}
	go e.follow(events) // ends with the control stream: Close waits for it
	return e, nil
}

// open opens the streams of r side by side, and reads the guest's first event.
func (e *Exec) open(ctx context.Context, s Streamer, r *ExecRequest) (*bufio.Reader, error) {
	data := []struct {
		path  string
		field **execStream
	}{{ExecInput, &e.stdin}, {ExecOutput, &e.stdout}, {ExecErrors, &e.stderr}}
	switch {
	case r.Detach:
		data = nil
	case r.Cols > 0 || r.Dial > 0:
		data = data[:2]
	}
	failed := make([]error, len(data))
	var wg sync.WaitGroup
	for i, d := range data {
		wg.Go(func() {
			conn, err := s.Stream(ctx, d.path, &ExecRequest{ID: r.ID})
			if err != nil {
				failed[i] = err
				return
			}
			*d.field = newExecStream(conn)
		})
	}
	conn, err := s.Stream(ctx, ExecControl, r)
	if err != nil {
		wg.Wait()
		return nil, err
	}
	e.control = newExecStream(conn)
	lines := &controlReader{ctx, e.control}
	events := bufio.NewReaderSize(lines, MaxExecEvent)
	first, err := nextEvent(events)
	wg.Wait()
	switch {
	case err != nil:
		return nil, fmt.Errorf("the agent did not say whether it started: %w", err)
	case first.Error != "":
		return nil, first.startError()
	}
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	lines.ctx = context.Background() // from now on the end of the stream ends reads
	return events, nil
}

// controlReader reads until ctx ends.
type controlReader struct {
	ctx     context.Context
	control *execStream
}

func (r *controlReader) Read(p []byte) (int, error) { return r.control.Read(r.ctx, p) }

// nextEvent reads one event, of at most MaxExecEvent bytes.
func nextEvent(r *bufio.Reader) (ExecEvent, error) {
	var e ExecEvent
	line, err := r.ReadSlice('\n')
	if err != nil {
		return e, err
	}
	return e, json.Unmarshal(line, &e)
}

// follow reads events until the stream ends or the guest breaks the protocol.
func (e *Exec) follow(events *bufio.Reader) {
	defer close(e.followed)
	for {
		event, err := nextEvent(events)
		if err != nil || !e.note(&event) {
			break
		}
	}
	select {
	case <-e.done:
	default:
		const text = "how it ended is not known: the connection to the guest's agent broke: %w"
		e.failure = fmt.Errorf(text, ErrGone)
		close(e.done)
		e.closeStreams() // a guest that breaks the protocol may hold them open
	}
	e.closeStream(e.stdin)
	e.closeStream(e.control)
}

// note records an event, and returns false if the guest must not send it now.
func (e *Exec) note(event *ExecEvent) bool {
	first := func(c chan struct{}) bool {
		select {
		case <-c:
			return false
		default:
			return true
		}
	}
	switch status := event.Exit; {
	case event.Ended == ExecInput && first(e.inputOver):
		close(e.inputOver)
		e.closeStream(e.stdin)
	case event.Ended == ExecOutput && first(e.stdoutEnd.known):
		e.stdoutEnd.bytes = event.Bytes
		close(e.stdoutEnd.known)
	case event.Ended == ExecErrors && first(e.stderrEnd.known):
		e.stderrEnd.bytes = event.Bytes
		close(e.stderrEnd.known)
	case status != nil && first(e.done) && status.valid():
		e.status = *status
		close(e.done)
		e.closeStream(e.stdin) // ends a write that still waits
	default:
		return false
	}
	return true
}

func (s *ExecStatus) valid() bool {
	return s.Code >= 0 && s.Code <= 255 && s.Signal >= 0 && s.Signal <= 64
}

// Done is closed when the command has ended, or when its end can no longer be known: see Status.
func (e *Exec) Done() <-chan struct{} { return e.done }

// Status returns how it ended, or ErrGone if that will never be known. It is valid once Done is
// closed.
func (e *Exec) Status() (ExecStatus, error) { return e.status, e.failure }

// Read reads the standard output, or the data of a connection. It blocks until there is some or ctx
// ends, whose error it then returns. It returns io.EOF at the end, and ErrGone if the connection to
// the guest broke before.
func (e *Exec) Read(ctx context.Context, p []byte) (int, error) {
	return e.read(ctx, e.stdout, &e.stdoutEnd, p)
}

// ReadErrors reads the standard error, as Read does. Terminals and connections have none.
func (e *Exec) ReadErrors(ctx context.Context, p []byte) (int, error) {
	return e.read(ctx, e.stderr, &e.stderrEnd, p)
}

func (e *Exec) read(ctx context.Context, s *execStream, end *outputEnd, p []byte) (int, error) {
	if s == nil {
		return 0, io.EOF
	}
	n, err := s.Read(ctx, p)
	if n > 0 || err == nil || err == ctx.Err() {
		return n, err
	}
	// A broken connection looks like an end. Only the guest's count distinguishes them.
	select {
	case <-end.known:
	case <-e.followed:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select {
	case <-end.known:
		if s.received.Load() == end.bytes {
			return 0, io.EOF
		}
	default:
	}
	const text = "its output is not complete: the connection to the guest's agent broke: %w"
	return 0, fmt.Errorf(text, ErrGone)
}

// Write writes to the standard input. It blocks while the command does not read it, until ctx ends:
// then it returns ctx's error and the bytes written. It returns EPIPE when the command reads no
// more.
func (e *Exec) Write(ctx context.Context, p []byte) (int, error) {
	if e.stdin == nil {
		return 0, syscall.EPIPE
	}
	n, err := e.stdin.write(ctx, func() (int, error) {
		if e.inputEnded {
			return 0, syscall.EPIPE
		}
		n, err := e.stdin.conn.Write(p)
		e.written += int64(n)
		return n, err
	})
	if err == nil || err == ctx.Err() {
		return n, err
	}
	select {
	case <-e.followed:
		if e.failure != nil {
			return n, e.failure
		}
	default:
	}
	return n, syscall.EPIPE
}

// EndInput ends the standard input after the bytes of earlier writes. Further calls do nothing.
func (e *Exec) EndInput(ctx context.Context) error {
	if e.stdin == nil {
		return nil
	}
	_, err := e.stdin.write(ctx, func() (int, error) {
		if e.inputEnded {
			return 0, nil
		}
		if err := e.send(ctx, ExecEvent{EOF: &e.written}); err != nil {
			return 0, err
		}
		e.inputEnded = true
		return 0, nil
	})
	if errors.Is(err, net.ErrClosed) {
		return nil // the command reads no more
	}
	if err == nil {
		e.closeStream(e.stdin)
	}
	return err
}

// signalWait bounds the wait for the agent's answer to a signal.
const signalWait = 3 * time.Second

// Signal sends a signal to the command and its processes. It returns when the agent has answered
// since: a signal has no answer of its own, but every agent answers a ping. It returns ErrGone
// after the command's end, and ErrTimeout when the agent is silent for signalWait. The command may
// get the signal even so.
func (e *Exec) Signal(ctx context.Context, signal int) error {
	ctx, cancel := context.WithTimeout(ctx, signalWait)
	defer cancel()
	err := e.send(ctx, ExecEvent{Signal: signal})
	if err == nil {
		answered := make(chan error, 1)
		go func() { // ends with ctx
			_, err := e.agent.Ping(ctx)
			answered <- err
		}()
		select {
		case err = <-answered:
		case <-e.done:
		}
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrTimeout) {
		const text = "the guest did not answer to signal %s within %v: %w"
		err = fmt.Errorf(text, SignalName(signal), signalWait, ErrTimeout)
	}
	return err
}

// Resize changes the size of its terminal.
func (e *Exec) Resize(ctx context.Context, cols, rows int) error {
	return e.send(ctx, ExecEvent{Cols: cols, Rows: rows})
}

func (e *Exec) send(ctx context.Context, event ExecEvent) error {
	select {
	case <-e.done:
		return fmt.Errorf("it has ended: %w", ErrGone)
	default:
	}
	b, err := json.Marshal(&event)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	n, err := e.control.Write(ctx, b)
	if err != nil && n > 0 {
		e.closeStream(e.control) // half an event cannot be taken back
	}
	if err != nil && err != ctx.Err() {
		return fmt.Errorf("the connection to the guest's agent broke: %v: %w", err, ErrGone)
	}
	return err
}

// Close closes the streams and returns when they are closed. A command that still runs and was not
// detached gets SIGHUP, and SIGKILL if it does not end.
func (e *Exec) Close() error {
	e.closeStreams()
	<-e.followed
	return nil
}

func (e *Exec) closeStreams() {
	for _, s := range []*execStream{e.control, e.stdin, e.stdout, e.stderr} {
		e.closeStream(s)
	}
}

func (e *Exec) closeStream(s *execStream) {
	if s != nil && !s.closed.Swap(true) {
		_ = s.conn.Close() // its end is all that is wanted
	}
}
