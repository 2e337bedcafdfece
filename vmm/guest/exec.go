package guest

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"banger/internal/printable"
	"banger/internal/value"
)

// Paths of the agent's streams of a command. ExecControl carries ExecEvents both ways, a line of
// JSON each, and begins with the guest's: PID or Error. The three others carry bytes one way, each
// at its own pace, so that an unread output delays nothing else. A control stream that ends before
// the command does ends the command, unless it was started detached.
const (
	ExecControl = "/exec"
	ExecInput   = "/exec/in"
	ExecOutput  = "/exec/out"
	ExecErrors  = "/exec/err"
)

const (
	// MaxExecs is how many commands run at once in a guest.
	MaxExecs = 64
	// MaxExecRequest bounds a request as JSON, MaxExecEvent an event with its end of line, in
	// bytes.
	MaxExecRequest = 64 << 10
	MaxExecEvent   = 4 << 10
	// ExecStartWait bounds the start of a command and the wait for its streams.
	ExecStartWait = 10 * time.Second
)

// ExecRequest is the request of ExecControl: a command to run, or a port to connect to. The
// requests of the other streams have the ID only.
type ExecRequest struct {
	ID   string   `json:"id"` // the same for all streams of one command; StartExec chooses it
	Argv []string `json:"argv,omitempty"`
	// Dial, in place of Argv, is a TCP port of the guest's loopback to connect to.
	Dial    int           `json:"dial,omitempty"`
	Dir     string        `json:"dir,omitempty"`  // if empty, the image's, or the user's home
	User    string        `json:"user,omitempty"` // NAME or UID, and :GROUP or :GID; or the image's
	Env     []string      `json:"env,omitempty"`  // K=V, before those of the image and the agent
	Timeout time.Duration `json:"timeout,omitempty"`
	Cols    int           `json:"cols,omitempty"` // of a terminal; Cols and Rows are 0 without one
	Rows    int           `json:"rows,omitempty"`
	Detach  bool          `json:"detach,omitempty"` // without streams; it outlives its connection
}

// execFields is an ExecRequest without its methods. rawFields hides those of its fields in JSON
// that may have bytes that are no UTF-8. Agents without value.Raw read all but such bytes.
type (
	execFields ExecRequest
	rawFields  struct {
		*execFields
		Argv []value.Raw `json:"argv,omitempty"`
		Dir  value.Raw   `json:"dir,omitempty"`
		User value.Raw   `json:"user,omitempty"`
		Env  []value.Raw `json:"env,omitempty"`
	}
)

// MarshalJSON implements json.Marshaler.
func (r ExecRequest) MarshalJSON() ([]byte, error) {
	return json.Marshal(rawFields{(*execFields)(&r), converted[value.Raw](r.Argv),
		value.Raw(r.Dir), value.Raw(r.User), converted[value.Raw](r.Env)})
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *ExecRequest) UnmarshalJSON(b []byte) error {
	f := rawFields{execFields: (*execFields)(r)}
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	r.Argv, r.Env = converted[string](f.Argv), converted[string](f.Env)
	r.Dir, r.User = string(f.Dir), string(f.User)
	return nil
}

func converted[To, From ~string](all []From) []To {
	var out []To
	for _, s := range all {
		out = append(out, To(s))
	}
	return out
}

// ExecEvent is a line on ExecControl. One field, or a pair, is set.
type ExecEvent struct {
	// From the host.
	Signal int    `json:"signal,omitempty"` // as Linux numbers them
	Cols   int    `json:"cols,omitempty"`
	Rows   int    `json:"rows,omitempty"`
	EOF    *int64 `json:"eof,omitempty"` // the input ends after that many bytes

	// From the guest.
	PID   int         `json:"pid,omitempty"`   // it was started; 0 for a connection
	Error string      `json:"error,omitempty"` // it was not started
	Kind  string      `json:"kind,omitempty"`  // of Error: one of execKinds
	Ended string      `json:"ended,omitempty"` // the path of a stream that has ended, after Bytes
	Bytes int64       `json:"bytes,omitempty"`
	Exit  *ExecStatus `json:"exit,omitempty"`
}

// ExecStatus is how a command ended.
type ExecStatus struct {
	Code     int  `json:"code"`
	Signal   int  `json:"signal,omitempty"` // that ended it, else 0
	TimedOut bool `json:"timed_out,omitempty"`
}

// String returns the text of the file `status`.
func (s ExecStatus) String() string {
	switch {
	case s.TimedOut:
		return "timed out"
	case s.Signal != 0:
		return "killed " + SignalName(s.Signal)
	}
	return "exited " + strconv.Itoa(s.Code)
}

// execKinds are the kinds of failed starts.
var execKinds = []struct {
	kind string
	err  error
}{
	{"invalid", ErrInvalid},
	{"notfound", ErrNotFound},
	{"access", ErrAccess},
	{"busy", ErrBusy},
}

// ExecRefusal returns the event of a command that could not be started.
func ExecRefusal(err error) ExecEvent {
	e := ExecEvent{Error: printable.Message(err.Error())} // names need not be UTF-8
	for _, k := range execKinds {
		if errors.Is(err, k.err) {
			e.Kind = k.kind
			e.Error = strings.TrimSuffix(e.Error, ": "+k.err.Error()) // Kind stands for it
			break
		}
	}
	if len(e.Error) > MaxExecEvent/8 { // JSON may need six bytes for one
		e.Error = e.Error[:MaxExecEvent/8]
	}
	return e
}

// startError undoes ExecRefusal. Its text is the guest's own.
func (e *ExecEvent) startError() error {
	err := ErrGone
	for _, k := range execKinds {
		if k.kind == e.Kind {
			err = k.err
		}
	}
	return &startFailure{e.Error, err}
}

// startFailure is a guest's sentence with the kind of its error, which the text does not repeat.
type startFailure struct {
	text string
	kind error
}

func (f *startFailure) Error() string { return f.text }
func (f *startFailure) Unwrap() error { return f.kind }
