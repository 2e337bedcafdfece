package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/vmm"
)

const greeting = `{"QMP":{"version":{},"capabilities":[]}}`

// scripted is a QEMU that answers each command with the result of reply; "" is silence.
func scripted(t *testing.T, reply func(command string, id uint64) string) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer server.Close()
		fmt.Fprintln(server, greeting)
		in := bufio.NewScanner(server)
		for in.Scan() {
			var c struct {
				Execute string `json:"execute"`
				ID      uint64 `json:"id"`
			}
			if json.Unmarshal(in.Bytes(), &c) != nil {
				return
			}
			out := fmt.Sprintf(`{"return":{},"id":%d}`, c.ID)
			if c.Execute != "qmp_capabilities" {
				out = reply(c.Execute, c.ID)
			}
			if out != "" {
				if _, err := fmt.Fprintln(server, out); err != nil {
					return
				}
			}
		}
	}()
	t.Cleanup(func() { client.Close(); <-done })
	return client
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func dialScript(
	t *testing.T, onEvent func(qmpEvent), reply func(string, uint64) string,
) *qmpClient {
	t.Helper()
	c, err := newQMP(within(t, 10*time.Second), scripted(t, reply), onEvent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestQMPCalls(t *testing.T) {
	events := make(chan qmpEvent, 1)
	c := dialScript(t, func(e qmpEvent) { events <- e }, func(command string, id uint64) string {
		switch command {
		case "fail":
			return fmt.Sprintf(`{"id":%d,"error":{"class":"GenericError","desc":"no"}}`, id)
		case "tell":
			return fmt.Sprintf(`{"event":"STOP","data":{"a":1}}`+"\n"+`{"return":{},"id":%d}`, id)
		}
		return fmt.Sprintf(`{"return":{"command":%q},"id":%d}`, command, id)
	})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var out struct{ Command string }
			name := fmt.Sprintf("c%d", i)
			err := c.call(within(t, 10*time.Second), name, nil, &out)
			if err != nil || out.Command != name {
				t.Errorf("%s: %q, %v", name, out.Command, err)
			}
		}()
	}
	wg.Wait()
	var refused *qmpError
	err := c.call(context.Background(), "fail", nil, nil)
	if !errors.As(err, &refused) || refused.Desc != "no" {
		t.Errorf("fail: %v", err)
	}
	if err := c.call(context.Background(), "tell", nil, nil); err != nil {
		t.Error(err)
	}
	if e := <-events; e.Name != "STOP" || string(e.Data) != `{"a":1}` {
		t.Errorf("event %+v", e)
	}
}

func TestQMPDeadlineAndBound(t *testing.T) {
	c := dialScript(t, nil, func(string, uint64) string { return "" })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.call(ctx, "silence", nil, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	err := c.call(within(t, 20*time.Millisecond), "silence", nil, nil)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	for range qmpPendingMax {
		c.call(within(t, time.Millisecond), "silence", nil, nil)
	}
	c.mu.Lock()
	n := len(c.pending)
	c.mu.Unlock()
	if n > qmpPendingMax {
		t.Errorf("%d calls pending", n)
	}
}

func TestQMPNoGreeting(t *testing.T) {
	client, server := net.Pipe()
	defer server.Close()
	_, err := newQMP(within(t, 20*time.Millisecond), client, nil)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent QEMU: %v", err)
	}
}

func TestQMPHostileLines(t *testing.T) {
	for name, line := range map[string]string{
		"too long":        strings.Repeat("x", qmpLineMax+1),
		"not JSON":        "hello",
		"nothing":         "{}",
		"two kinds":       `{"return":{},"event":"STOP"}`,
		"second greeting": greeting,
		"error for none":  `{"error":{"class":"GenericError","desc":"x"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			c := dialScript(t, func(qmpEvent) {}, func(string, uint64) string { return line })
			err := c.call(within(t, 10*time.Second), "x", nil, nil)
			if err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the connection outlives it: %v", err)
			}
		})
	}
	t.Run("unknown id", func(t *testing.T) {
		c := dialScript(t, nil, func(_ string, id uint64) string {
			return fmt.Sprintf("{\"return\":{},\"id\":999}\n{\"return\":{},\"id\":%d}", id)
		})
		if err := c.call(within(t, 10*time.Second), "x", nil, nil); err != nil {
			t.Error(err)
		}
	})
}

func FuzzDecodeQMP(f *testing.F) {
	for _, s := range []string{
		greeting, `{"return":{},"id":1}`, `{"id":2,"error":{"class":"a","desc":"b"}}`,
		`{"timestamp":{"seconds":1,"microseconds":2},"event":"SHUTDOWN",` +
			`"data":{"guest":true,"reason":"guest-shutdown"}}`,
		`{"return":null}`, `{"id":-1,"return":1}`, `[]`, `{`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decodeQMP(line)
		if err != nil {
			return
		}
		if m.Greeting == nil && m.Return == nil && m.Error == nil && m.Event == "" {
			t.Errorf("%q is nothing", line)
		}
		(&Machine{notices: make(chan vmm.Notice, 1)}).event(qmpEvent{m.Event, m.Data})
	})
}
