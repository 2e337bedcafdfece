package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/vmm/guest"
)

// piped is a guest whose agent is in this process: its streams are pipes.
type piped struct {
	guest.Agent
	streams map[string]guest.StreamHandler
	serving sync.WaitGroup
}

func (p *piped) Stream(_ context.Context, path string, request any) (net.Conn, error) {
	b, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	serve, err := p.streams[path](b)
	if err != nil {
		return nil, err
	}
	host, far := net.Pipe()
	p.serving.Add(1)
	go func() {
		defer p.serving.Done()
		serve(far)
	}()
	return host, nil
}

func (*piped) Ping(context.Context) (guest.Info, error) { return guest.Info{}, nil }

// newPiped serves commands of this machine; at its end nothing may be left of them.
func newPiped(t *testing.T) *piped {
	g := &agent{children: ownChildren{}}
	p := &piped{streams: guest.NewExecServer(g.startExec).Streams()}
	t.Cleanup(p.serving.Wait)
	return p
}

// patient bounds a test's wait.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, p *piped, r guest.ExecRequest) *guest.Exec {
	t.Helper()
	e, err := guest.StartExec(patient(t), p, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func shell(line string) guest.ExecRequest {
	return guest.ExecRequest{Argv: []string{"/bin/sh", "-c", line}}
}

// readAll reads one of a command's outputs.
func readAll(t *testing.T, read func(context.Context, []byte) (int, error)) string {
	t.Helper()
	var all []byte
	for buf := make([]byte, 1000); ; {
		n, err := read(patient(t), buf)
		all = append(all, buf[:n]...)
		if err == io.EOF {
			return string(all)
		}
		if err != nil {
			t.Fatalf("after %d bytes: %v", len(all), err)
		}
	}
}

func status(t *testing.T, e *guest.Exec) string {
	t.Helper()
	select {
	case <-e.Done():
	case <-patient(t).Done():
		t.Fatal("it does not end")
	}
	s, err := e.Status()
	if err != nil {
		t.Fatal(err)
	}
	return s.String()
}

// TestExecOwnFiles opens a command's standard files again as the user that it runs as.
func TestExecOwnFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("run as root")
	}
	r := shell("cat < /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr")
	r.User = "65534"
	e := start(t, newPiped(t), r)
	if err := e.EndInput(patient(t)); err != nil {
		t.Error(err)
	}
	out, errs := readAll(t, e.Read), readAll(t, e.ReadErrors)
	if got := status(t, e); out != "out\n" || errs != "err\n" || got != "exited 0" {
		t.Errorf("it printed %q and %q, and %s", out, errs, got)
	}
}

func TestExec(t *testing.T) {
	p := newPiped(t)
	dir := t.TempDir()
	odd := filepath.Join(dir, "d\xfd ")
	if err := os.Mkdir(odd, 0o755); err != nil {
		t.Fatal(err)
	}
	who := fmt.Sprint(os.Getuid())
	for _, x := range []struct {
		name                string
		request             guest.ExecRequest
		out, errs, finished string
	}{
		{"argv", guest.ExecRequest{Argv: []string{"printf", "%s|", "a b", "", "*"}}, "a b||*|", "", "exited 0"},
		{"both outputs", shell("echo out; echo err >&2; exit 3"), "out\n", "err\n", "exited 3"},
		{"a signal", shell("kill -KILL $$"), "", "", "killed KILL"},
		{"no input", shell("cat; echo end"), "end\n", "", "exited 0"},
		{"a time limit", guest.ExecRequest{Argv: []string{"sleep", "100"}, Timeout: 50 * time.Millisecond}, "", "", "timed out"},
		{"deaf to its time limit", guest.ExecRequest{Argv: []string{"/bin/sh", "-c", "trap '' TERM; echo on; while :; do sleep 0.05; done"}, Timeout: 300 * time.Millisecond}, "on\n", "", "timed out"},
		{"a directory", guest.ExecRequest{Argv: []string{"pwd"}, Dir: dir}, dir + "\n", "", "exited 0"},
		{"the environment", guest.ExecRequest{Argv: []string{"/bin/sh", "-c", "echo $A $HOME"}, Env: []string{"A=1", "A=b c", "HOME=/x"}}, "b c /x\n", "", "exited 0"},
		{"free bytes", guest.ExecRequest{Argv: []string{"/bin/sh", "-c", `printf %s "$A|$1|${PWD##*/}"`, "sh", "\xfe b "}, Env: []string{"A=\xff \n"}, Dir: odd}, "\xff \n|\xfe b |d\xfd ", "", "exited 0"},
		{"a user", guest.ExecRequest{Argv: []string{"id", "-u"}, User: who}, who + "\n", "", "exited 0"},
		{"something in the background", shell("sleep 100 & echo $! >" + dir + "/pid; echo here"), "here\n", "", "exited 0"},
		{"detached", guest.ExecRequest{Argv: []string{"sh", "-c", "cat; echo to nobody"}, Detach: true}, "", "", "exited 0"},
		{"a terminal", guest.ExecRequest{Argv: []string{"/bin/sh", "-c", "tty >/dev/null && stty size; echo err >&2"}, Cols: 120, Rows: 40}, "40 120\r\nerr\r\n", "", "exited 0"},
	} {
		t.Run(x.name, func(t *testing.T) {
			e := start(t, p, x.request)
			if err := e.EndInput(patient(t)); err != nil && !errors.Is(err, guest.ErrGone) {
				t.Error(err)
			}
			out, errs := readAll(t, e.Read), readAll(t, e.ReadErrors)
			if x.request.Cols > 0 {
				out = strings.ReplaceAll(out, "^D\b\b", "") // how a terminal shows its end of input
			}
			if out != x.out || errs != x.errs {
				t.Errorf("it printed %q and %q, not %q and %q", out, errs, x.out, x.errs)
			}
			if s := status(t, e); s != x.finished {
				t.Errorf("it %s, not %s", s, x.finished)
			}
			if _, err := e.Write(patient(t), []byte("late")); !errors.Is(err, syscall.EPIPE) {
				t.Errorf("a write after its end: %v", err)
			}
		})
	}
	var pid int
	b, err := os.ReadFile(filepath.Join(dir, "pid"))
	if _, serr := fmt.Sscan(string(b), &pid); errors.Join(err, serr) != nil || syscall.Kill(pid, syscall.SIGKILL) != nil {
		t.Errorf("what a command left in the background does not run on: %v %v", err, serr)
	}
}

// TestExecInImage: a command gets what the image says, and what its request says instead.
func TestExecInImage(t *testing.T) {
	inImage, ask := t.TempDir(), t.TempDir()
	who, group := fmt.Sprint(os.Getuid()), fmt.Sprint(os.Getgid())
	g := &agent{children: ownChildren{}, program: &guest.Program{
		Args: []string{"true"}, Env: []string{"A=image", "B=image", "HOME=/image"}, Dir: inImage, User: who + ":" + group,
	}}
	p := &piped{streams: guest.NewExecServer(g.startExec).Streams()}
	t.Cleanup(p.serving.Wait)
	const line = `echo $A $B $HOME $(pwd) $(id -u) $(id -g) ${PATH:+path}`
	for _, x := range []struct {
		request guest.ExecRequest
		want    string
	}{
		{shell(line), "image image /image " + inImage + " " + who + " " + group + " path\n"},
		{guest.ExecRequest{Argv: shell(line).Argv, Env: []string{"B=asked"}, Dir: ask, User: who}, "image asked /image " + ask + " " + who + " " + group + " path\n"},
	} {
		e := start(t, p, x.request)
		if out := readAll(t, e.Read); out != x.want {
			t.Errorf("it printed %q, not %q", out, x.want)
		}
	}
	g.program = &guest.Program{Args: []string{"true"}, Env: []string{"PATH=/nowhere"}, Dir: "/no/such/directory"}
	if _, err := guest.StartExec(patient(t), p, guest.ExecRequest{Argv: []string{"true"}}); !errors.Is(err, guest.ErrNotFound) {
		t.Errorf("a program outside the image's PATH: %v", err)
	}
	e := start(t, p, guest.ExecRequest{Argv: []string{"/bin/sh", "-c", "[ -d . ] && echo here"}})
	if out := readAll(t, e.Read); out != "here\n" {
		t.Errorf("without the image's directory it printed %q", out)
	}
}

func TestFindAccount(t *testing.T) {
	for text, want := range map[string]account{
		"":            {name: "root", uid: 0, gid: 0},
		"root":        {name: "root", uid: 0, gid: 0},
		"0:":          {name: "root", uid: 0, gid: 0},
		"root:daemon": {name: "root", uid: 0, gid: 1},
		"0:54321":     {name: "root", uid: 0, gid: 54321},
		"54321":       {name: "54321", uid: 54321, gid: 54321},
		"54321:root":  {name: "54321", uid: 54321, gid: 0},
	} {
		a, err := findAccount(text)
		if err != nil || a.name != want.name || a.uid != want.uid || a.gid != want.gid || strings.Contains(text, ":") && a.groups != nil {
			t.Errorf("%q is %+v (%v), not %+v", text, a, err, want)
		}
	}
	for _, text := range []string{"no-such-user", "no-such-user:0", "root:no-such-group", "-1", "4294967296", ":0"} {
		if a, err := findAccount(text); !errors.Is(err, guest.ErrInvalid) {
			t.Errorf("%q is %+v, %v", text, a, err)
		}
	}
}

func TestExecRefused(t *testing.T) {
	p := newPiped(t)
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		request guest.ExecRequest
		want    error
	}{
		{guest.ExecRequest{}, guest.ErrInvalid},
		{guest.ExecRequest{Argv: []string{"no-such-program"}}, guest.ErrNotFound},
		{guest.ExecRequest{Argv: []string{plain}}, guest.ErrAccess},
		{guest.ExecRequest{Argv: []string{"true"}, Dir: plain}, guest.ErrInvalid},
		{guest.ExecRequest{Argv: []string{"true"}, User: "no-such-user"}, guest.ErrInvalid},
		{guest.ExecRequest{Argv: []string{"true"}, User: "0:no-such-group"}, guest.ErrInvalid},
		{guest.ExecRequest{Argv: []string{strings.Repeat("x", guest.MaxExecRequest)}}, guest.ErrTooBig},
		{guest.ExecRequest{Dial: 1}, guest.ErrNotFound},
	} {
		if e, err := guest.StartExec(patient(t), p, x.request); !errors.Is(err, x.want) {
			t.Errorf("%.100v: %v, not %v", x.request, err, x.want)
			if err == nil {
				e.Close()
			}
		}
	}
}

// TestExecBytes passes many bytes of all values through a command while its errors are not read.
func TestExecBytes(t *testing.T) {
	e := start(t, newPiped(t), shell("yes error >&2 & cat; kill $!"))
	data := make([]byte, 8<<20)
	rand.New(rand.NewSource(1)).Read(data)
	go func() {
		for rest := data; len(rest) > 0; {
			n, err := e.Write(context.Background(), rest[:min(len(rest), 100_000)])
			if err != nil {
				t.Error(err)
				break
			}
			rest = rest[n:]
		}
		if err := e.EndInput(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	got := readAll(t, e.Read)
	if sha256.Sum256([]byte(got)) != sha256.Sum256(data) {
		t.Errorf("%d bytes came back as %d others", len(data), len(got))
	}
	if s := status(t, e); s != "exited 0" {
		t.Error(s)
	}
}

func TestExecSignals(t *testing.T) {
	p := newPiped(t)
	e := start(t, p, shell("trap 'echo got it; exit 7' INT; echo ready; while :; do sleep 0.05; done"))
	buf := make([]byte, 100)
	if n, err := e.Read(patient(t), buf); err != nil || string(buf[:n]) != "ready\n" {
		t.Fatalf("%q %v", buf[:n], err)
	}
	if err := e.Signal(patient(t), int(syscall.SIGINT)); err != nil {
		t.Fatal(err)
	}
	if out, s := readAll(t, e.Read), status(t, e); out != "got it\n" || s != "exited 7" {
		t.Errorf("%q, %s", out, s)
	}
	if err := e.Signal(patient(t), int(syscall.SIGINT)); !errors.Is(err, guest.ErrGone) {
		t.Errorf("a signal for what has ended: %v", err)
	}

	tty := start(t, p, guest.ExecRequest{Argv: []string{"/bin/sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"}, Cols: 80, Rows: 24})
	n, err := tty.Read(patient(t), buf)
	if err != nil || string(buf[:n]) != "ready\r\n" {
		t.Fatalf("%q %v", buf[:n], err)
	}
	if err := tty.Resize(patient(t), 132, 43); err != nil {
		t.Fatal(err)
	}
	if n, err = tty.Read(patient(t), buf); err != nil || string(buf[:n]) != "43 132\r\n" {
		t.Errorf("%q %v", buf[:n], err)
	}
	if _, err := tty.Write(patient(t), []byte{3}); err != nil { // Ctrl-C
		t.Fatal(err)
	}
	if s := status(t, tty); s != "killed INT" {
		t.Error(s)
	}
}

// TestExecClosed lets go of commands that would run for ever.
func TestExecClosed(t *testing.T) {
	p := newPiped(t)
	dir := t.TempDir()
	alive := func(name string) bool {
		var pid int
		b, _ := os.ReadFile(filepath.Join(dir, name))
		_, err := fmt.Sscan(string(b), &pid)
		stat, serr := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || serr == nil && !strings.Contains(string(stat), ") Z ")
	}
	for name, line := range map[string]string{
		"plain": "echo $$ >%s; exec sleep 1000",
		"deaf":  "trap '' HUP; echo $$ >%s; while :; do sleep 0.1; done",
		"child": "sh -c 'trap \"\" HUP; echo $$ >%s; while :; do sleep 0.1; done' & wait",
	} {
		e := start(t, p, shell(fmt.Sprintf(line, filepath.Join(dir, name))))
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if b, _ := os.ReadFile(filepath.Join(dir, name)); len(b) > 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatal("it does not start")
			}
		}
		if !alive(name) {
			t.Fatalf("%s is not alive before its end", name)
		}
		e.Close()
		for end := time.Now().Add(10 * time.Second); alive(name); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s is still alive", name)
			}
		}
	}
	file := filepath.Join(dir, "detached")
	e := start(t, p, guest.ExecRequest{Argv: []string{"/bin/sh", "-c", "sleep 0.3; echo done >" + file}, Detach: true})
	e.Close()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if b, _ := os.ReadFile(file); string(b) == "done\n" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("what was detached does not go on")
		}
	}
}

func TestExecMany(t *testing.T) {
	p := newPiped(t)
	var all []*guest.Exec
	for range guest.MaxExecs {
		all = append(all, start(t, p, guest.ExecRequest{Argv: []string{"cat"}}))
	}
	if _, err := guest.StartExec(patient(t), p, guest.ExecRequest{Argv: []string{"cat"}}); !errors.Is(err, guest.ErrBusy) {
		t.Errorf("one more: %v", err)
	}
	for i, e := range all {
		word := fmt.Sprintln("word", i)
		if _, err := e.Write(patient(t), []byte(word)); err != nil {
			t.Fatal(err)
		}
		if err := e.EndInput(patient(t)); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, e.Read); got != word {
			t.Errorf("%q came back as %q", word, got)
		}
		if s := status(t, e); s != "exited 0" {
			t.Error(s)
		}
	}
	// The places are free again once the guest has seen the end of its streams.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		e, err := guest.StartExec(patient(t), p, guest.ExecRequest{Argv: []string{"true"}})
		if err == nil {
			e.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func TestExecDial(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() { // an upper-case echo that answers at the end of what it is sent
		conn, err := l.Accept()
		if err == nil {
			defer conn.Close()
			var b []byte
			if b, err = io.ReadAll(conn); err == nil {
				_, err = conn.Write(bytes.ToUpper(b))
			}
		}
		served <- err
	}()
	e := start(t, newPiped(t), guest.ExecRequest{Dial: l.Addr().(*net.TCPAddr).Port})
	if _, err := e.Write(patient(t), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := e.EndInput(patient(t)); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, e.Read); got != "HELLO" {
		t.Errorf("got %q", got)
	}
	if s := status(t, e); s != "exited 0" {
		t.Error(s)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
