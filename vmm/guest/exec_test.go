package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"
)

// scripted is a guest whose agent sends these texts on its streams, and then closes them unless
// stay is set.
type scripted struct {
	Agent
	says map[string]string
	stay bool
}

func (l *scripted) Stream(_ context.Context, path string, _ any) (net.Conn, error) {
	host, far := net.Pipe()
	go io.Copy(io.Discard, far) // ends with the stream
	go func() {
		io.WriteString(far, l.says[path])
		if !l.stay {
			far.Close()
		}
	}()
	return host, nil
}

func TestExecStatus(t *testing.T) {
	for want, s := range map[string]ExecStatus{
		"exited 0": {}, "exited 255": {Code: 255},
		"killed TERM": {Signal: 15}, "killed RTMAX": {Signal: 64}, "killed RTMIN+3": {Signal: 37},
		"killed 32": {Signal: 32},
		"timed out": {Code: 143, TimedOut: true},
	} {
		if got := s.String(); got != want {
			t.Errorf("%+v is %q, not %q", s, got, want)
		}
	}
}

// TestExecRequest checks that requests survive JSON byte for byte, and that an agent that does not
// know value.Raw reads a request in UTF-8 all the same.
func TestExecRequest(t *testing.T) {
	for text, want := range map[string]ExecRequest{
		`{"id":"a","timeout":1000000000,"cols":80,"rows":24,"argv":["uname","-a"],"dir":"/tmp/é","user":"root","env":["A=1 "]}`: {
			ID: "a", Argv: []string{"uname", "-a"}, Dir: "/tmp/é", User: "root",
			Env: []string{"A=1 "}, Timeout: time.Second, Cols: 80, Rows: 24},
		`{"id":"b","detach":true,"argv":["\\udcff",""," \udc80"],"dir":"/\udcfe ","user":"\udcfd","env":["\udcfc=\udcfb"]}`: {
			ID: "b", Argv: []string{"\\udcff", "", " \x80"}, Dir: "/\xfe ", User: "\xfd",
			Env: []string{"\xfc=\xfb"}, Detach: true},
		`{"id":"c","dial":22}`: {ID: "c", Dial: 22},
	} {
		got, err := json.Marshal(want)
		if err != nil || string(got) != text {
			t.Errorf("it is written as\n%s, %v, not as\n%s", got, err, text)
		}
		var back ExecRequest
		if err := json.Unmarshal([]byte(text), &back); err != nil || !reflect.DeepEqual(back, want) {
			t.Errorf("%s is read as %+v, %v", text, back, err)
		}
		var older execFields // without value.Raw
		if err := json.Unmarshal([]byte(text), &older); err != nil {
			t.Errorf("an older agent cannot read %s: %v", text, err)
		} else if !strings.Contains(text, "udc") && !reflect.DeepEqual(ExecRequest(older), want) {
			t.Errorf("an older agent reads %s as %+v", text, older)
		}
	}
}

// TestExecRefusal checks that the sentence of a failed start is escaped and bounded.
func TestExecRefusal(t *testing.T) {
	e := ExecRefusal(fmt.Errorf("no \xff\x1b here: %w", ErrNotFound))
	if e.Error != `no \xff\x1b here` || !errors.Is(e.startError(), ErrNotFound) {
		t.Errorf("the refusal is %+v", e)
	}
	e = ExecRefusal(errors.New(strings.Repeat("\xff", MaxExecEvent)))
	if b, err := json.Marshal(&e); err != nil || len(b) >= MaxExecEvent {
		t.Errorf("a long refusal has %d bytes, %v", len(b), err)
	}
}

// TestExecHostile starts commands in guests that lie. Each lie ends its command within its time.
func TestExecHostile(t *testing.T) {
	const started = `{"pid":1}` + "\n"
	for _, x := range []struct {
		name, control string
		starts        bool
	}{
		{"nothing", "", false},
		{"no JSON", "hello\n", false},
		{"an endless first line", strings.Repeat("x", 10*MaxExecEvent), false},
		{"a refusal", `{"error":"no\u001b[2J","kind":"busy"}` + "\n", false},
		{"an end only of the stream", started, true},
		{"an endless line", started + strings.Repeat(`{`, 10*MaxExecEvent), true},
		{"two ends", started + strings.Repeat(`{"ended":"/exec/out","bytes":1}`+"\n", 2), true},
		{"what nobody asked", started + `{"ended":"/etc/passwd"}` + "\n", true},
		{"no status", started + `{"exit":{"code":300}}` + "\n", true},
		{"no signal", started + `{"exit":{"signal":-1}}` + "\n", true},
		{"babbling", started + strings.Repeat("{}\n", 100000), true},
	} {
		for _, stay := range []bool{false, true} {
			if stay && (x.name == "nothing" || x.name == "an end only of the stream") {
				continue // that is a guest which is slow
			}
			t.Run(fmt.Sprint(x.name, stay), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				says := map[string]string{ExecControl: x.control, ExecOutput: "out"}
				g := &scripted{says: says, stay: stay}
				e, err := StartExec(ctx, g, ExecRequest{Argv: []string{"x"}})
				if !x.starts {
					if err == nil {
						t.Fatal("it started")
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				defer e.Close()
				select {
				case <-e.Done():
				case <-ctx.Done():
					t.Fatal("its end is not told")
				}
				if _, err := e.Status(); !errors.Is(err, ErrGone) {
					t.Errorf("its status: %v", err)
				}
				buf := make([]byte, 100)
				for err == nil && ctx.Err() == nil {
					_, err = e.Read(ctx, buf)
				}
				if !errors.Is(err, ErrGone) {
					t.Errorf("its output ends with %v", err)
				}
				if err := e.Signal(ctx, 15); !errors.Is(err, ErrGone) {
					t.Errorf("a signal: %v", err)
				}
			})
		}
	}
}

// mute is a guest whose commands run on. Its agent answers to a ping unless silent is set.
type mute struct {
	scripted
	silent bool
}

func (m *mute) Ping(ctx context.Context) (Info, error) {
	if m.silent {
		<-ctx.Done()
		return Info{}, ErrTimeout
	}
	return Info{}, nil
}

// TestExecSignalAnswered sends signals to a guest that answers and to one that hangs.
func TestExecSignalAnswered(t *testing.T) {
	for _, silent := range []bool{false, true} {
		g := &mute{scripted{says: map[string]string{ExecControl: `{"pid":1}` + "\n"}, stay: true}, silent}
		e, err := StartExec(t.Context(), g, ExecRequest{Argv: []string{"a"}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if !silent { // it needs no time
			ctx = t.Context()
		}
		err = e.Signal(ctx, 15)
		cancel()
		if errors.Is(err, ErrTimeout) != silent || err == nil == silent {
			t.Errorf("a signal to a guest (silent: %v): %v", silent, err)
		}
		e.Close()
	}
}

// TestExecCut has outputs of another length than the guest reports.
func TestExecCut(t *testing.T) {
	for bytes, want := range map[int]error{3: io.EOF, 4: ErrGone, 2: ErrGone} {
		g := &scripted{says: map[string]string{
			ExecControl: `{"pid":1}` + "\n" +
				fmt.Sprintf(`{"ended":"/exec/out","bytes":%d}`, bytes) + "\n" +
				`{"exit":{"code":0}}` + "\n",
			ExecOutput: "out",
		}}
		e, err := StartExec(context.Background(), g, ExecRequest{Argv: []string{"x"}})
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for buf := make([]byte, 100); err == nil; {
			var n int
			n, err = e.Read(context.Background(), buf)
			got.WriteString(string(buf[:n]))
		}
		if got.String() != "out" || !errors.Is(err, want) {
			t.Errorf("%d bytes told: %q, %v", bytes, got.String(), err)
		}
		e.Close()
	}
}
