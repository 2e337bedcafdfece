package guest

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// TestCollectEndHostile collects ends that a guest has invented. Each is bounded, or refused.
func TestCollectEndHostile(t *testing.T) {
	long := strings.Repeat("x", 10*maxEndError)
	for _, x := range []struct {
		name, says string
		want       End
		fails      bool
	}{
		{"good", `{"status":{"code":3}}`, End{Status: ExecStatus{Code: 3}}, false},
		{"killed", `{"status":{"code":0,"signal":9}}`, End{Status: ExecStatus{Signal: 9}}, false},
		{"huge", `{"status":{"code":99999,"signal":99999}}`, End{Status: ExecStatus{Code: 255, Signal: 64}}, false},
		{"negative", `{"status":{"code":-1,"signal":-9,"timed_out":true}}`, End{}, false},
		{"long", `{"error":"` + long[:2*maxEndError] + `"}`, End{Error: long[:maxEndError]}, false},
		{"no UTF-8", "{\"error\":\"a\xff\"}", End{Error: "a\ufffd"}, false},
		{"too long", `{"error":"` + long + `"}`, End{}, true},
		{"no JSON", "hello", End{}, true},
		{"nothing", "", End{}, true},
	} {
		kept := false
		err := CollectEnd(t.Context(), &scripted{says: map[string]string{EndStream: x.says}},
			func(got End) {
				kept = true
				if got != x.want {
					t.Errorf("%s: %+v, not %+v", x.name, got, x.want)
				}
			})
		if kept == x.fails || x.fails != (err != nil && kept == false) {
			t.Errorf("%s: kept %v, error %v", x.name, kept, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := CollectEnd(ctx, &scripted{stay: true}, func(End) { t.Error("silence was kept") })
	if err == nil {
		t.Error("a silent guest has no error")
	}
}

// TestEndHandler loses one host before it has the end. The next one collects it.
func TestEndHandler(t *testing.T) {
	known, collected := make(chan struct{}), make(chan struct{}, 2)
	want := End{Status: ExecStatus{Code: 7}}
	h := EndHandler(func() End { <-known; return want }, func() { collected <- struct{}{} })
	serve := func() (host net.Conn, done chan struct{}) {
		f, err := h(nil)
		if err != nil {
			t.Fatal(err)
		}
		host, guest := net.Pipe()
		done = make(chan struct{})
		go func() { f(guest); close(done) }()
		return host, done
	}
	gone, done := serve()
	gone.Close()
	close(known)
	<-done
	if len(collected) != 0 {
		t.Error("a host that has gone has collected the end")
	}
	host, done := serve()
	var got End
	err := CollectEnd(t.Context(), piped{host}, func(e End) { got = e })
	<-done
	if err != nil || got != want || len(collected) != 1 {
		t.Errorf("collected %+v, error %v, %d times", got, err, len(collected))
	}
	// An agent of an earlier version.
	refused := &badAnswer{"status 404", 404}
	if err := CollectEnd(t.Context(), refuser{refused}, nil); !errors.Is(err, ErrUnsupported) {
		t.Errorf("error %v", err)
	}
}

type piped struct{ conn net.Conn }

func (p piped) Stream(context.Context, string, any) (net.Conn, error) { return p.conn, nil }

type refuser struct{ err error }

func (r refuser) Stream(context.Context, string, any) (net.Conn, error) { return nil, r.err }
