package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// printed is a standard output that another goroutine reads.
type printed struct {
	mu   sync.Mutex
	text strings.Builder
}

func (p *printed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

// expect waits until a text is all that was printed.
func (p *printed) expect(t *testing.T, want string) {
	t.Helper()
	var got string
	for range 1000 {
		p.mu.Lock()
		got = p.text.String()
		p.mu.Unlock()
		if got == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("it printed %q, not %q", got, want)
}

var ageOf = regexp.MustCompile(`[0-9dhms]+ ago`)

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// TestLogsFollow follows a log that grows, over a daemon that goes and one whose offsets differ,
// until the VM is another.
func TestLogsFollow(t *testing.T) {
	root := web(t)
	log, vms := filepath.Join(root, "vms/web/log"), filepath.Join(root, "vms")
	var out, errs printed
	ended := make(chan int)
	go func() {
		ended <- run([]string{"--mount", root, "logs", "-f", "--tail", "1", "web"},
			stdio{strings.NewReader(""), &out, &errs})
	}()
	out.expect(t, "two\n")
	put(t, log, "one\ntwo\nthree\n")
	out.expect(t, "two\nthree\n")
	move(t, vms, vms+".away") // no daemon
	errs.expect(t, "")        // the open file is still there
	put(t, vms+".away/web/log.new", "three\nfour\n")
	move(t, vms+".away/web/log.new", vms+".away/web/log")
	errs.expect(t, fmt.Sprintf("banger: bangerd is gone from %s; waiting for it\n", root))
	move(t, vms+".away", vms)
	out.expect(t, "two\nthree\nthree\nfour\n") // a log without anything of the old one
	put(t, log+".new", "other\n")
	move(t, log+".new", log)
	if code := <-ended; code != exitOK {
		t.Errorf("it ended with %d", code)
	}
}

func TestResume(t *testing.T) {
	for _, x := range []struct {
		text, seen string
		pos        int
		rest       string
	}{
		{"one\ntwo\n", "one\n", 4, "two\n"},
		{"x\nx\nx\n", "x\nx\n", 4, "x\n"},
		{"two\nthree\n", "one\ntwo\n", 8, "two\nthree\n"},
		{"two\nthree\n", "two\n", 100, "three\n"},
		{"two\nthree\n", "", 0, "two\nthree\n"},
		{"", "two\n", 4, ""},
	} {
		if got := x.text[resume([]byte(x.text), []byte(x.seen), x.pos):]; got != x.rest {
			t.Errorf("%q after %q at %d goes on with %q", x.text, x.seen, x.pos, got)
		}
	}
}

// TestPast cuts texts for --tail.
func TestPast(t *testing.T) {
	for _, x := range []struct {
		text string
		tail int
		want string
	}{
		{"a\nb\nc\n", -1, "a\nb\nc\n"}, {"a\nb\nc\n", 0, ""}, {"a\nb\nc\n", 1, "c\n"},
		{"a\nb\nc\n", 2, "b\nc\n"}, {"a\nb\nc\n", 9, "a\nb\nc\n"}, {"", 1, ""},
		{"a\n\nb", 1, "b"}, {"a\n\nb", 2, "\nb"}, {"\n", 1, "\n"},
	} {
		if got := (&follow{tail: x.tail}).past(x.text); got != x.want {
			t.Errorf("the last %d lines of %q are %q", x.tail, x.text, got)
		}
	}
}

// TestForPeople prints events and the list of a tree as on a terminal.
func TestForPeople(t *testing.T) {
	old := time.Local
	defer func() { time.Local = old }()
	time.Local = time.FixedZone("", 2*3600)
	root := web(t)
	put(t, filepath.Join(root, "events"), "1790000000.500 7 web state running\n"+
		"lost 3\n1790000001.000 11 a-long-name create\n1790000002.000 12 web exit exited 0: as asked\n")
	code, out, errs := banger(root, "events", "--color", "always", "-n", "4")
	out = ageOf.ReplaceAllString(out, "AGE")
	const want = faint + "2026-09-21 16:13:20  AGE" + plain + "  web          state " +
		green + "running" + plain + "\nlost 3\n" +
		faint + "2026-09-21 16:13:21  AGE" + plain + "  a-long-name  create\n" +
		faint + "2026-09-21 16:13:22  AGE" + plain + "  web          exit exited 0: as asked\n"
	if code != exitOK || out != want || errs != "" {
		t.Errorf("%d %q %q", code, out, errs)
	}
	for _, args := range []string{"events", "events --raw --color always", "events --color never"} {
		_, out, _ := banger(root, strings.Fields(args)...)
		if !strings.HasPrefix(out, "1790000000.500 7 web state running\n") {
			t.Errorf("banger %s: %q", args, out)
		}
	}
	put(t, filepath.Join(root, "list"), "web  running  healthy  12.345  134217728  172.30.0.2  3723.5  app\n"+
		"off  failed   stopped  -       -          -           -       -\nodd\n")
	const list = bold + "NAME" + plain + "  " + bold + "STATE" + plain + "    " + bold + "HEALTH" + plain +
		"   " + bold + "CPU%" + plain + "  " + bold + "MEMORY" + plain + "  " + bold + "ADDRESS" + plain +
		"     " + bold + "UPTIME" + plain + "  " + bold + "IMAGE" + plain + "\n" +
		"web   " + green + "running" + plain + "  " + green + "healthy" + plain +
		"  12.3    128M  172.30.0.2   1h02m  app\n" +
		"off   " + red + "failed" + plain + "   stopped     -       -  -                -  -\n"
	if _, out, _ := banger(root, "ls", "--color", "always"); out != list {
		t.Errorf("%q", out)
	}
	if code, _, errs := banger(root, "ls", "--color", "purple"); code != exitUsage {
		t.Errorf("%d %s", code, errs)
	}
}
