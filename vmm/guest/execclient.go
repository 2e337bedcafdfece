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
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Paths of the agent's streams of a command. ExecControl carries ExecEvents both ways, a line of JSON each, and begins with the guest's: PID or
// Error. The three others carry bytes one way, each at its own pace, so that an output which nobody reads delays nothing else. A control stream that ends
// before the command does is the end of the command, unless it was started detached.
const (
	ExecControl = "/exec"
	ExecInput   = "/exec/in"
	ExecOutput  = "/exec/out"
	ExecErrors  = "/exec/err"
)

const (
	// MaxExecs is how many commands run at once in a guest.
	MaxExecs = 64
	// MaxExecRequest is the most bytes of a request as JSON, and MaxExecEvent of an event with its end of line.
	MaxExecRequest = 64 << 10
	MaxExecEvent   = 4 << 10
	// ExecStartWait bounds the start of a command and the coming together of its streams.
	ExecStartWait = 10 * time.Second
)

// ExecRequest says what to run in a guest, as the request of ExecControl does. The requests of the other streams have ID only.
type ExecRequest struct {
	ID      string        `json:"id"` // what the streams of one command have in common; chosen by StartExec
	Argv    []string      `json:"argv,omitempty"`
	Dial    int           `json:"dial,omitempty"` // instead of Argv: the data is a connection to this TCP port of the guest's loopback
	Dir     string        `json:"dir,omitempty"`  // the image's or the user's home if empty
	User    string        `json:"user,omitempty"` // name or uid, perhaps with :group or :gid; the image's or root if empty
	Env     []string      `json:"env,omitempty"`  // K=V, over what the image and the agent give
	Timeout time.Duration `json:"timeout,omitempty"`
	Cols    int           `json:"cols,omitempty"` // of a terminal; without one Cols and Rows are 0
	Rows    int           `json:"rows,omitempty"`
	Detach  bool          `json:"detach,omitempty"` // it has no input and no output and goes on without the host
}

// ExecEvent is what one side tells the other on ExecControl; one field, or a pair, is set.
type ExecEvent struct {
	// From the host.
	Signal int    `json:"signal,omitempty"` // as numbered on Linux
	Cols   int    `json:"cols,omitempty"`
	Rows   int    `json:"rows,omitempty"`
	EOF    *int64 `json:"eof,omitempty"` // the input ends after so many bytes

	// From the guest.
	PID   int         `json:"pid,omitempty"`   // it was started; 0 in Error's place for a connection
	Error string      `json:"error,omitempty"` // it was not started
	Kind  string      `json:"kind,omitempty"`  // of Error: one of execKinds
	Ended string      `json:"ended,omitempty"` // the path of a stream that has ended, after Bytes
	Bytes int64       `json:"bytes,omitempty"`
	Exit  *ExecStatus `json:"exit,omitempty"`
}

// ExecStatus is how a command ended.
type ExecStatus struct {
	Code     int  `json:"code"`
	Signal   int  `json:"signal,omitempty"`    // that ended it, else 0
	TimedOut bool `json:"timed_out,omitempty"` // it was ended because its time was over
}

// String is what the file `status` shows.
func (s ExecStatus) String() string {
	switch {
	case s.TimedOut:
		return "timed out"
	case s.Signal != 0:
		return "killed " + SignalName(s.Signal)
	}
	return "exited " + strconv.Itoa(s.Code)
}

// SignalName gives INT for 2, and the number itself for a signal without a name (signal(7)).
func SignalName(signal int) string {
	if name := unix.SignalName(syscall.Signal(signal)); name != "" {
		return strings.TrimPrefix(name, "SIG")
	}
	return strconv.Itoa(signal)
}

// ParseSignal reads INT, SIGINT or 2, or fails with ErrInvalid.
func ParseSignal(text string) (int, error) {
	if n, err := strconv.Atoi(text); err == nil && n >= 1 && n <= 64 {
		return n, nil
	}
	if n := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(text), "SIG")); n != 0 {
		return int(n), nil
	}
	return 0, fmt.Errorf("%.64q is not a signal, such as INT, TERM or 9: %w", text, ErrInvalid)
}

// execKinds are what an agent's refusals mean.
var execKinds = []struct {
	kind string
	err  error
}{
	{"invalid", ErrInvalid},
	{"notfound", ErrNotFound},
	{"access", ErrAccess},
	{"busy", ErrBusy},
}

// ExecRefusal is the event for a command that could not be started.
func ExecRefusal(err error) ExecEvent {
	e := ExecEvent{Error: err.Error()}
	for _, k := range execKinds {
		if errors.Is(err, k.err) {
			e.Kind = k.kind
			e.Error = strings.TrimSuffix(e.Error, ": "+k.err.Error()) // the host knows that
			break
		}
	}
	if len(e.Error) > MaxExecEvent/8 { // JSON may need six bytes for one
		e.Error = e.Error[:MaxExecEvent/8]
	}
	return e
}

func (e *ExecEvent) refusal() error {
	err := ErrGone
	for _, k := range execKinds {
		if k.kind == e.Kind {
			err = k.err
		}
	}
	return &guestRefusal{e.Error, err}
}

// guestRefusal is a guest's sentence, which says already what the error means.
type guestRefusal struct {
	text string
	err  error
}

func (g *guestRefusal) Error() string { return g.text }
func (g *guestRefusal) Unwrap() error { return g.err }

// Exec is a command that was started in a guest, or a connection into one. All methods may be called from many goroutines; whoever started it
// closes it. Nothing that the guest sends is believed beyond its form: one that breaks the protocol ends the connection.
type Exec struct {
	control, in, out, errs *execStream // all but control are nil where there is no such stream

	sent  int64 // bytes of the input; with the turn of in's writes, as is ended
	ended bool  // the input

	// Each is closed once, by follow.
	inputOver chan struct{} // the guest takes no more
	done      chan struct{} // status and failure are valid
	followed  chan struct{} // no more events come

	status  ExecStatus
	failure error
	outEnd  execEnd
	errEnd  execEnd
}

// execEnd is where the guest says that an output ends. bytes is valid once told is closed.
type execEnd struct {
	told  chan struct{}
	bytes int64
}

// StartExec starts what r says in the guest and returns when it runs there. Errors: ErrUnsupported for an agent without streams, those of Streamer, and
// as the guest refuses: ErrInvalid (no such user or directory), ErrNotFound (no such command or listener), ErrAccess, ErrBusy (MaxExecs).
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
		return nil, fmt.Errorf("a command, its arguments and its environment may have %d bytes: %w", MaxExecRequest, ErrTooBig)
	}
	e := &Exec{
		inputOver: make(chan struct{}), done: make(chan struct{}), followed: make(chan struct{}),
		outEnd: execEnd{told: make(chan struct{})}, errEnd: execEnd{told: make(chan struct{})},
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
		path string
		to   **execStream
	}{{ExecInput, &e.in}, {ExecOutput, &e.out}, {ExecErrors, &e.errs}}
	switch {
	case r.Detach:
		data = nil
	case r.Cols > 0 || r.Dial > 0:
		data = data[:2]
	}
	failed := make([]error, len(data))
	var wg sync.WaitGroup
	for i, d := range data {
		wg.Add(1)
		go func() {
			defer wg.Done()
			conn, err := s.Stream(ctx, d.path, ExecRequest{ID: r.ID})
			if err != nil {
				failed[i] = err
				return
			}
			*d.to = newExecStream(conn)
		}()
	}
	conn, err := s.Stream(ctx, ExecControl, r)
	if err != nil {
		wg.Wait()
		return nil, err
	}
	e.control = newExecStream(conn)
	from := &controlReader{ctx, e.control}
	events := bufio.NewReaderSize(from, MaxExecEvent)
	first, err := nextEvent(events)
	wg.Wait()
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot hear whether it started: %w", err)
	case first.Error != "":
		return nil, first.refusal()
	}
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	from.ctx = context.Background() // from here on until it is closed
	return events, nil
}

// controlReader reads until ctx ends.
type controlReader struct {
	ctx context.Context
	s   *execStream
}

func (c *controlReader) Read(p []byte) (int, error) { return c.s.Read(c.ctx, p) }

// nextEvent reads one event, of at most MaxExecEvent bytes.
func nextEvent(r *bufio.Reader) (ExecEvent, error) {
	var e ExecEvent
	line, err := r.ReadSlice('\n')
	if err != nil {
		return e, err
	}
	return e, json.Unmarshal(line, &e)
}

// follow hears the guest until it says no more, or what it may not say.
func (e *Exec) follow(events *bufio.Reader) {
	defer close(e.followed)
	for {
		event, err := nextEvent(events)
		if err != nil || !e.heard(&event) {
			break
		}
	}
	select {
	case <-e.done:
	default:
		e.failure = fmt.Errorf("how it ended is not known: the connection to the guest's agent broke: %w", ErrGone)
		close(e.done)
		e.closeStreams() // what a guest holds open that breaks the protocol would never end
	}
	e.closeStream(e.in)
	e.closeStream(e.control)
}

// heard takes note of an event, and reports whether the guest may say that now.
func (e *Exec) heard(event *ExecEvent) bool {
	once := func(c chan struct{}) bool {
		select {
		case <-c:
			return false
		default:
			return true
		}
	}
	switch x := event.Exit; {
	case event.Ended == ExecInput && once(e.inputOver):
		close(e.inputOver)
		e.closeStream(e.in)
	case event.Ended == ExecOutput && once(e.outEnd.told):
		e.outEnd.bytes = event.Bytes
		close(e.outEnd.told)
	case event.Ended == ExecErrors && once(e.errEnd.told):
		e.errEnd.bytes = event.Bytes
		close(e.errEnd.told)
	case x != nil && once(e.done) && x.Code >= 0 && x.Code <= 255 && x.Signal >= 0 && x.Signal <= 64:
		e.status = *x
		close(e.done)
		e.closeStream(e.in) // who still writes is told
	default:
		return false
	}
	return true
}

// Done is closed when the command has ended, or nothing more is heard of it: Status says which.
func (e *Exec) Done() <-chan struct{} { return e.done }

// Status is how it ended, or ErrGone if that will never be known; valid once Done is closed.
func (e *Exec) Status() (ExecStatus, error) { return e.status, e.failure }

// Read reads what it prints, or of a connection what comes. It blocks until there is something or ctx ends (its error), and gives io.EOF at the end, ErrGone if
// the connection to the guest broke before.
func (e *Exec) Read(ctx context.Context, p []byte) (int, error) {
	return e.read(ctx, e.out, &e.outEnd, p)
}

// ReadErrors is Read of what it prints as errors; a terminal and a connection have none.
func (e *Exec) ReadErrors(ctx context.Context, p []byte) (int, error) {
	return e.read(ctx, e.errs, &e.errEnd, p)
}

func (e *Exec) read(ctx context.Context, s *execStream, end *execEnd, p []byte) (int, error) {
	if s == nil {
		return 0, io.EOF
	}
	n, err := s.Read(ctx, p)
	if n > 0 || err == nil || err == ctx.Err() {
		return n, err
	}
	// A connection that breaks looks like an end: the guest's count tells them apart.
	select {
	case <-end.told:
	case <-e.followed:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select {
	case <-end.told:
		if s.got.Load() == end.bytes {
			return 0, io.EOF
		}
	default:
	}
	return 0, fmt.Errorf("what it printed is not complete: the connection to the guest's agent broke: %w", ErrGone)
}

// Write gives it input. It blocks while the command does not take it, until ctx ends (its error, with how much it took). EPIPE when it takes no more.
func (e *Exec) Write(ctx context.Context, p []byte) (int, error) {
	if e.in == nil {
		return 0, syscall.EPIPE
	}
	n, err := e.in.turn(ctx, e.in.writes, e.in.conn.SetWriteDeadline, func() (int, error) {
		if e.ended {
			return 0, syscall.EPIPE
		}
		n, err := e.in.conn.Write(p)
		e.sent += int64(n)
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

// EndInput is the end of its input, behind all that was written; again, it does nothing.
func (e *Exec) EndInput(ctx context.Context) error {
	if e.in == nil {
		return nil
	}
	_, err := e.in.turn(ctx, e.in.writes, e.in.conn.SetWriteDeadline, func() (int, error) {
		if e.ended {
			return 0, nil
		}
		if err := e.tell(ctx, ExecEvent{EOF: &e.sent}); err != nil {
			return 0, err
		}
		e.ended = true
		return 0, nil
	})
	if errors.Is(err, net.ErrClosed) {
		return nil // it takes no more already
	}
	if err == nil {
		e.closeStream(e.in)
	}
	return err
}

// Signal sends a signal to the command and what it has started; ErrGone when it has ended.
func (e *Exec) Signal(ctx context.Context, signal int) error {
	return e.tell(ctx, ExecEvent{Signal: signal})
}

// Resize gives its terminal another size.
func (e *Exec) Resize(ctx context.Context, cols, rows int) error {
	return e.tell(ctx, ExecEvent{Cols: cols, Rows: rows})
}

func (e *Exec) tell(ctx context.Context, event ExecEvent) error {
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

// Close lets go of it: a command that still runs and was not detached is hung up, and killed if it does not care. It returns when the streams are closed.
func (e *Exec) Close() error {
	e.closeStreams()
	<-e.followed
	return nil
}

func (e *Exec) closeStreams() {
	for _, s := range []*execStream{e.control, e.in, e.out, e.errs} {
		e.closeStream(s)
	}
}

func (e *Exec) closeStream(s *execStream) {
	if s != nil && !s.closed.Swap(true) {
		_ = s.conn.Close() // its end is what matters
	}
}

// execStream is a connection whose reads and writes end with a context, one of each at a time.
type execStream struct {
	conn          net.Conn
	reads, writes chan struct{} // held by the one whose turn it is
	closed        atomic.Bool
	got           atomic.Int64 // bytes read
}

func newExecStream(conn net.Conn) *execStream {
	return &execStream{conn: conn, reads: make(chan struct{}, 1), writes: make(chan struct{}, 1)}
}

func (s *execStream) Read(ctx context.Context, p []byte) (int, error) {
	return s.turn(ctx, s.reads, s.conn.SetReadDeadline, func() (int, error) {
		n, err := s.conn.Read(p)
		s.got.Add(int64(n))
		return n, err
	})
}

func (s *execStream) Write(ctx context.Context, p []byte) (int, error) {
	return s.turn(ctx, s.writes, s.conn.SetWriteDeadline, func() (int, error) { return s.conn.Write(p) })
}

// turn does what blocks until ctx ends, whose error it then gives.
func (s *execStream) turn(ctx context.Context, turn chan struct{}, deadline func(time.Time) error, do func() (int, error)) (int, error) {
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	_ = deadline(time.Time{}) // a connection that refuses it fails below
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = deadline(time.Unix(1, 0))
		close(fired)
	})
	n, err := do()
	if !stop() {
		<-fired
		if late := net.Error(nil); errors.As(err, &late) && late.Timeout() || errors.Is(err, os.ErrDeadlineExceeded) {
			err = ctx.Err()
		}
	}
	return n, err
}
