package audit

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func same(uid uint32) uint32 { return uid }

// open opens a Log that ends with the test.
func open(t *testing.T, path string, user func(uint32) uint32) *Log {
	t.Helper()
	l, err := Open(Options{Path: path, Log: slog.New(slog.DiscardHandler), User: user})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l
}

// padding makes lines long, so that fewer fill the file.
var padding = strings.Repeat("x", 400)

// add adds lines of a user, who is not held up.
func add(l *Log, kind Kind, uid uint32, count int) {
	for i := range count {
		l.Add(nil, kind, uid, true, func() Line {
			return Line{UID: uid, PID: 7, Comm: "sh", Path: fmt.Sprintf("vms/%d-%d", uid, i),
				What: padding, Result: "ok"}
		})
	}
}

// settle waits until all lines are written: the disk of a busy host may be late.
func settle(l *Log) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		l.mu.Lock()
		waiting := l.queue
		l.mu.Unlock()
		if waiting == nil && !l.late.Load() {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestLineForgesNothing expects seven words and one line, whatever texts a user chooses.
func TestLineForgesNothing(t *testing.T) {
	hostile := "a b\n1 0 1 root vms write ok\r\x1b]0;x\a\x00\xff\u202e\u2028\\x20"
	for _, l := range []Line{
		{}, {Comm: hostile, Path: hostile, What: hostile, Result: hostile},
		{UID: 1<<32 - 1, PID: 1<<32 - 1, Comm: " ", Path: strings.Repeat("\x01", 1<<16)},
	} {
		text := string(l.append(nil, time.Now()))
		if strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, "\n") {
			t.Errorf("%q is not one line", text)
		}
		words := strings.Split(strings.TrimSuffix(text, "\n"), " ")
		if len(words) != 7 {
			t.Errorf("%q has %d words", text, len(words))
		}
		for i, word := range words {
			if word == "" || strings.ContainsFunc(word, func(r rune) bool { return r <= ' ' }) {
				t.Errorf("word %d of %q is %q", i, text, word)
			}
		}
		if uid, own, ok := uidOf([]byte(text)); uid != l.UID || own || !ok {
			t.Errorf("%q is a line of %d, %v, %v", text, uid, own, ok)
		}
	}
}

// TestFloodKeepsOthers expects that a user who fills the file removes only her own lines, also by
// the uids of her user namespaces, and that the file stays small.
func TestFloodKeepsOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l := open(t, path, func(uid uint32) uint32 {
		if uid >= 100000 {
			return 1001
		}
		return uid
	})
	add(l, Change, 1002, 500)
	l.AddOwn(1002, Line{Path: "vms/of-1002", What: "failed", Result: "ok"})
	for round := range 3 {
		for i := range 8 {
			var work sync.WaitGroup
			for j := range 50 {
				work.Go(func() { add(l, Change, uint32(100000+1000*round+50*i+j), 10) })
			}
			work.Wait()
			settle(l)
		}
		if size, _ := l.Size(); size > mostBytes {
			t.Fatalf("the file has %d bytes", size)
		}
	}
	settle(l)
	text := read(t, path)
	if n := strings.Count(text, " 1002 7 sh "); n != 500 {
		t.Errorf("%d of 500 lines of another user are left", n)
	}
	if !strings.Contains(text, " bangerd vms/of-1002 failed ok\n") {
		t.Error("a line of the daemon is gone")
	}
	if len(text) < keptBytes || len(text) > mostBytes {
		t.Errorf("the file has %d bytes", len(text))
	}
	if !strings.Contains(text, " vms/102399-9 ") {
		t.Error("the newest line is gone")
	}
}

func TestShareOf(t *testing.T) {
	for _, c := range []struct {
		sizes []int
		want  int
	}{
		{nil, 100}, {[]int{100}, 100}, {[]int{101}, 100}, {[]int{10, 1000}, 90},
		{[]int{1000, 10, 1000}, 45}, {[]int{50, 50}, 100}, {[]int{60, 60}, 50},
	} {
		if got := shareOf(c.sizes, 100); got != c.want {
			t.Errorf("the share of %v is %d, not %d", c.sizes, got, c.want)
		}
	}
}

// count returns how many whole lines a text has, and how many lost ones of user 1001 it tells.
func count(t *testing.T, text string) (lines, lost int) {
	t.Helper()
	for line := range strings.Lines(text) {
		n := 0
		if i := strings.Index(line, " 1001 - - - lost["); i > 0 {
			if _, err := fmt.Sscanf(line[i:], " 1001 - - - lost[%d] -\n", &n); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			lost += n
			continue
		}
		lines++
		if _, _, ok := uidOf([]byte(line)); !ok || !strings.HasSuffix(line, " ok\n") {
			t.Errorf("%q is no line", line)
		}
	}
	return lines, lost
}

// TestRefusalsAreCounted expects a bounded number of lines of refusals, and their exact count. The
// changes of the same user have all theirs.
func TestRefusalsAreCounted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l := open(t, path, same)
	add(l, Refusal, 1001, 5000)
	add(l, Change, 1001, 300)
	add(l, Refusal, 1002, 1)
	if err := l.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	lines, lost := count(t, read(t, path))
	if lines+lost != 5301 || lines < 401 || lines > 700 {
		t.Errorf("%d lines, %d lost", lines, lost)
	}
}

// TestFastUserIsSlowed expects that a user who makes changes very fast waits, that root does not,
// and that a signal ends the wait.
func TestFastUserIsSlowed(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "audit"), same)
	l.mu.Lock()
	l.limiterLocked(payer{1001, Change}).AllowN(time.Now(), rates[Change].burst)
	l.limiterLocked(payer{0, Change}).AllowN(time.Now(), rates[Change].burst)
	l.mu.Unlock()
	took := func(uid uint32, stop chan struct{}) time.Duration {
		began := time.Now()
		for range 100 {
			l.Add(stop, Change, uid, false, func() Line { return Line{UID: uid} })
		}
		return time.Since(began)
	}
	if d := took(1001, nil); d < 150*time.Millisecond {
		t.Errorf("100 changes beyond the rate took %v", d)
	}
	stopped := make(chan struct{})
	close(stopped)
	began := time.Now()
	l.Add(stopped, Change, 1001, false, func() Line { return Line{UID: 1001} })
	if d := time.Since(began); d > slowest/2 {
		t.Errorf("a call that was interrupted took %v", d)
	}
}

// TestKeptAcrossEnds expects that lines last over a Log's end and a death at any byte, and that
// what a power failure leaves is no line.
func TestKeptAcrossEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l := open(t, path, same)
	add(l, Change, 1001, 10)
	whole := read(t, path) // written when Add returns
	if strings.Count(whole, "\n") != 10 {
		t.Fatalf("the file has %q", whole)
	}
	if err := l.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, end := range []string{"", "1764", "1764316800.1 0 1 sh vms/x mkdir"} {
		if err := os.WriteFile(path, []byte(whole+end), 0o644); err != nil {
			t.Fatal(err)
		}
		l := open(t, path, same)
		add(l, Change, 1002, 1)
		text := read(t, path)
		if !strings.HasPrefix(text, whole) || strings.Count(text, "\n") != 11 ||
			!strings.HasSuffix(text, " vms/1002-0 "+padding+" ok\n") {
			t.Errorf("after %q the file has %q", end, text)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the file's mode is %v, %v", info.Mode(), err)
		}
		l.Close(context.Background())
	}
	// Blocks that never reached the disk read as NUL bytes.
	if err := os.WriteFile(path, append(make([]byte, 5000), "\n"+whole...), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, path, same)
	if text := read(t, path); text != whole {
		t.Errorf("after NUL bytes the file has %q", text)
	}
}

// TestReaderSeesAll expects each line once, also while the file is replaced meanwhile.
func TestReaderSeesAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l := open(t, path, same)
	add(l, Change, 1001, 100)
	r, err := l.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	before, _ := l.Size()
	var seen bytes.Buffer
	look := func() {
		text, dropped := r.Text()
		seen.Write(text[int64(seen.Len())-dropped:])
	}
	for range 30 {
		add(l, Change, 1001, 700)
		settle(l)
		look()
	}
	if n := bytes.Count(seen.Bytes(), []byte("\n")); n != 21100 {
		t.Errorf("%d lines were seen of 21100", n)
	}
	text, dropped := r.Text()
	if len(text) > maxReaderText || dropped == 0 && seen.Len() > maxReaderText {
		t.Errorf("a reader keeps %d bytes after %d", len(text), dropped)
	}
	if after, _ := l.Size(); after <= before || after > mostBytes {
		t.Errorf("the file has %d bytes", after)
	}
}

// TestFullDisk expects that lines without room are counted, and that nothing half written is left.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("run as root: it mounts a tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := filepath.Join(dir, "audit")
	l := open(t, path, same)
	began := time.Now()
	add(l, Change, 1001, 3000)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("3000 lines took %v", took)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	lines, lost := 0, 0
	for end := time.Now().Add(10 * time.Second); lines+lost < 3000 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		lines, lost = count(t, read(t, path))
	}
	if lines+lost != 3000 || lost == 0 {
		t.Errorf("%d lines, %d lost", lines, lost)
	}
	l.Close(context.Background())
}

// TestSilentDisk expects that a disk that does not answer holds up the first commands for a moment
// and later ones not at all, and that the queue is bounded.
func TestSilentDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l := open(t, path, same)
	l.fileMu.Lock() // as a writer that hangs in the kernel holds it
	began := time.Now()
	add(l, Change, 1001, 20000)
	took := time.Since(began)
	l.mu.Lock()
	waiting := len(l.queue.text)
	l.mu.Unlock()
	l.fileMu.Unlock()
	if took > 4*patience {
		t.Errorf("20000 commands were held up for %v", took)
	}
	if waiting > mostQueue+1<<13 {
		t.Errorf("%d bytes wait for the disk", waiting)
	}
	if err := l.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	text := read(t, path)
	if !strings.Contains(text, " vms/1001-0 ") || !strings.Contains(text, "lost[") &&
		strings.Count(text, "\n") != 20000 {
		t.Errorf("the file has %d lines", strings.Count(text, "\n"))
	}
}
