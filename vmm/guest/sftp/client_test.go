package sftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pkgsftp "github.com/pkg/sftp"
	"golang.org/x/sys/unix"
)

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// noLeak fails when goroutines are left once the test's cleanups have run.
func noLeak(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		end := time.Now().Add(10 * time.Second)
		for ; runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				b := make([]byte, 1<<20)
				t.Fatalf("goroutines left:\n%s", b[:runtime.Stack(b, true)])
			}
		}
	})
}

// dial gives a session with what serve does at the far end.
func dial(t *testing.T, serve func(net.Conn)) *Client {
	t.Helper()
	noLeak(t)
	here, there := net.Pipe()
	var work sync.WaitGroup
	work.Go(func() { serve(there) })
	t.Cleanup(work.Wait)
	c, err := NewClient(within(t, 10*time.Second), here)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(net.ErrClosed) })
	return c
}

// served gives a session with an agent that serves a directory.
func served(t *testing.T) (*Client, string) {
	t.Helper()
	root := t.TempDir()
	serve, err := Handler(root)(nil)
	if err != nil {
		t.Fatal(err)
	}
	return dial(t, serve), root
}

func put(t *testing.T, c *Client, path string, data []byte) {
	t.Helper()
	ctx := within(t, 10*time.Second)
	h, err := c.Open(ctx, path, Write|Create|Truncate, 0o640)()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := h.Write(ctx, data, 0); n != len(data) || err != nil {
		t.Fatalf("%d bytes written of %d: %v", n, len(data), err)
	}
	h.Close()
}

func TestFiles(t *testing.T) {
	c, root := served(t)
	ctx := within(t, 30*time.Second)
	data := bytes.Repeat([]byte("0123456789abcde\n"), 50_000)
	put(t, c, "/a", data)
	if got, err := os.ReadFile(root + "/a"); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes arrived of %d, %v", len(got), len(data), err)
	}
	h, err := c.Open(ctx, "/a", Read, 0)()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := c.Stat(ctx, "/")()
	if err != nil || !h.HasAttrs || h.Dir != dir ||
		h.File.Size != uint64(len(data)) || h.File.Mode != syscall.S_IFREG|0o640 {
		t.Errorf("it opens %+v in %+v, which is %+v, %v", h.File, h.Dir, dir, err)
	}
	if got, err := h.Read(ctx, 1<<20, 16); err != nil || !bytes.Equal(got, data[16:]) {
		t.Errorf("%d bytes read of %d, %v", len(got), len(data)-16, err)
	}
	if got, err := h.Read(ctx, 100, int64(len(data))); err != nil || len(got) != 0 {
		t.Errorf("read at the end: %q, %v", got, err)
	}
	h.Close()

	mode, uid, size := uint32(0o4711), uint32(os.Getuid()), uint64(5)
	when := time.Unix(1_000_000_000, 123_456_789)
	changed, err := c.Set(ctx, "/a", Change{
		Size: &size, Mode: &mode, UID: &uid, Atime: TimeNow, Mtime: when.UnixNano(), Sync: true,
	})()
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.Stat(ctx, "/a")()
	if err != nil || a != changed || a.Size != 5 || a.Mode != syscall.S_IFREG|0o4711 ||
		!a.Mtime.Equal(when) || time.Since(a.Atime) > time.Minute || a.Nlink != 1 || a.Blocks != 8 {
		t.Errorf("%+v, %v", a, err)
	}

	for _, f := range []func() error{
		c.Mkdir(ctx, "/d"),
		c.Symlink(ctx, "/etc/shadow", "/d/link"),
		c.Link(ctx, "/a", "/d/hard"),
		func() error { return c.Rename(ctx, "/d/hard", "/d/other", false) },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	if target, err := c.Readlink(ctx, "/d/link"); target != "/etc/shadow" || err != nil {
		t.Errorf("%q, %v", target, err)
	}
	if a, err := c.Stat(ctx, "/d/link")(); a.Mode&syscall.S_IFMT != syscall.S_IFLNK || err != nil {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := c.Stat(ctx, "/d/other")(); a.Nlink != 2 || err != nil {
		t.Errorf("%+v, %v", a, err)
	}
	if s, err := c.StatVFS(ctx, "/d"); s.Blocks == 0 || s.Bfree > s.Blocks || err != nil {
		t.Errorf("%+v, %v", s, err)
	}

	onlyMode := unchanged
	onlyMode.Mode = &mode
	for name, x := range map[string]struct {
		got  error
		want syscall.Errno
	}{
		"stat of none":    {second(c.Stat(ctx, "/none")()), syscall.ENOENT},
		"through a file":  {second(c.Stat(ctx, "/a/b")()), syscall.ENOTDIR},
		"through a link":  {second(c.Stat(ctx, "/d/link/x")()), syscall.ELOOP},
		"open a link":     {second(c.Open(ctx, "/d/link", Read, 0)()), syscall.ELOOP},
		"open a dir":      {second(c.Open(ctx, "/d", Write, 0)()), syscall.EISDIR},
		"create anew":     {second(c.Open(ctx, "/a", Write|Create|Exclusive, 0)()), syscall.EEXIST},
		"mkdir again":     {c.Mkdir(ctx, "/d")(), syscall.EEXIST},
		"rmdir full":      {c.Rmdir(ctx, "/d"), syscall.ENOTEMPTY},
		"unlink a dir":    {c.Remove(ctx, "/d"), syscall.EISDIR},
		"rmdir of a file": {c.Rmdir(ctx, "/a"), syscall.ENOTDIR},
		"rename over":     {c.Rename(ctx, "/a", "/d/other", false), syscall.EEXIST},
		"list a file":     {second(c.OpenDir(ctx, "/a")), syscall.ENOTDIR},
		"chmod of a link": {second(c.Set(ctx, "/d/link", onlyMode)()), syscall.EOPNOTSUPP},
		"out of the root": {second(c.Stat(ctx, "/../../../../etc/passwd")()), syscall.ENOENT},
	} {
		if x.got != x.want {
			t.Errorf("%s: %v, want %v", name, x.got, x.want)
		}
	}
	if err := c.Rename(ctx, "/a", "/d/other", true); err != nil {
		t.Error(err)
	}
	err = errors.Join(c.Remove(ctx, "/d/other"), c.Remove(ctx, "/d/link"), c.Rmdir(ctx, "/d"))
	if err != nil {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestFifo(t *testing.T) {
	c, root := served(t)
	if err := syscall.Mkfifo(root+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Open(within(t, 10*time.Second), "/fifo", Read, 0)(); err != syscall.ENXIO {
		t.Errorf("opening a fifo: %v", err)
	}
}

func TestMany(t *testing.T) {
	c, root := served(t)
	const n = 1000
	for i := range n {
		if err := os.WriteFile(filepath.Join(root, fmt.Sprint("file", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx := within(t, 30*time.Second)
	h, err := c.OpenDir(ctx, "/")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for {
		names, err := h.ReadDir(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range names {
			seen[x.Name] = x.Attr.Mode == syscall.S_IFREG|0o600
		}
	}
	h.Close()
	for i := range n {
		if !seen[fmt.Sprint("file", i)] {
			t.Fatalf("file%d is missing, or another", i)
		}
	}
	// Many calls at once, each with its own answer.
	var work sync.WaitGroup
	for i := range 64 {
		work.Go(func() {
			path := fmt.Sprint("/of", i)
			data := bytes.Repeat([]byte{byte(i)}, 10_000+i)
			h, err := c.Open(ctx, path, Read|Write|Create, 0o600)()
			if err != nil {
				t.Error(err)
				return
			}
			defer h.Close()
			if _, err := h.Write(ctx, data, 0); err != nil {
				t.Error(err)
			}
			if got, err := h.Read(ctx, 1<<20, 0); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: %d bytes, %v", path, len(got), err)
			}
		})
	}
	work.Wait()
}

func TestSeek(t *testing.T) {
	c, root := served(t)
	ctx := within(t, 30*time.Second)
	const size = 1 << 40
	f, err := os.Create(root + "/x")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte("x"), 4096), size/2); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	h, err := c.Open(ctx, "/x", Read, 0)()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		off    int64
		whence uint32
		at     int64
		err    error
	}{
		{0, unix.SEEK_DATA, size / 2, nil},
		{0, unix.SEEK_HOLE, 0, nil},
		{size/2 + 1, unix.SEEK_DATA, size/2 + 1, nil},
		{size / 2, unix.SEEK_HOLE, size/2 + 4096, nil},
		{size/2 + 4096, unix.SEEK_DATA, 0, syscall.ENXIO},
		{size, unix.SEEK_HOLE, 0, syscall.ENXIO},
		{-1, unix.SEEK_DATA, 0, syscall.ENXIO},
		{0, unix.SEEK_END, 0, syscall.EINVAL},
	} {
		if at, err := h.Seek(ctx, x.off, x.whence); at != x.at || err != x.err {
			t.Errorf("from %d by %d: %d, %v, want %d, %v", x.off, x.whence, at, err, x.at, x.err)
		}
	}
	nobodys := &Handle{c: c, id: "none"}
	if at, err := nobodys.Seek(ctx, 0, unix.SEEK_DATA); err != syscall.EBADF {
		t.Errorf("without a file: %d, %v", at, err)
	}
	// The rest of the session's work goes by offsets of its own.
	if b, err := h.Read(ctx, 2, size/2); string(b) != "xx" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// TestOthersServer has the library's own server, as another agent might.
func TestOthersServer(t *testing.T) {
	c := dial(t, func(conn net.Conn) {
		_ = pkgsftp.NewRequestServer(conn, pkgsftp.InMemHandler()).Serve() // ends with the session
	})
	put(t, c, "/x", []byte("hello"))
	a, err := c.Stat(within(t, 10*time.Second), "/x")()
	if err != nil || a.Size != 5 || a.Mode != syscall.S_IFREG|0o644 {
		t.Errorf("%+v, %v", a, err)
	}
	h, err := c.Open(within(t, 10*time.Second), "/x", Read, 0)()
	if err != nil {
		t.Fatal(err)
	}
	at, err := h.Seek(within(t, 10*time.Second), 0, unix.SEEK_DATA)
	if err != syscall.EOPNOTSUPP {
		t.Errorf("data is at %d, %v, of a server that does not know the request", at, err)
	}
	shorter, size := unchanged, uint64(2)
	shorter.Size = &size
	a, err = c.Set(within(t, 10*time.Second), "/x", shorter)()
	if err != nil || a.Size != 2 {
		t.Errorf("%+v, %v", a, err)
	}
}

// packet makes an answer.
func packet(kind byte, id uint32, body ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(5+len(body)))
	return append(binary.BigEndian.AppendUint32(append(b, kind), id), body...)
}

// answering takes each request and writes what answer gives for it, until the session ends.
func answering(answer func(kind byte, id uint32) []byte) func(net.Conn) {
	return func(conn net.Conn) {
		defer conn.Close()
		readPacket(conn)
		conn.Write(greeting(kindVersion))
		for {
			kind, d, err := readPacket(conn)
			if err != nil {
				return
			}
			if _, err := conn.Write(answer(kind, d.u32())); err != nil {
				return
			}
		}
	}
}

func TestHostile(t *testing.T) {
	long := func(n uint32, s string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, n), s...)
	}
	names := func(list ...string) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(list)))
		for _, s := range list {
			b = append(appendString(appendString(b, s), "as ls would"), 0, 0, 0, 0)
		}
		return b
	}
	lists := func(c *Client, ctx context.Context) error {
		got, err := (&Handle{c: c, id: "1"}).ReadDir(ctx)
		if err == nil && (len(got) != 1 || got[0].Name != "good") {
			return fmt.Errorf("the names are %v", got)
		}
		return err
	}
	stats := func(c *Client, ctx context.Context) error { return second(c.Stat(ctx, "/x")()) }
	reads := func(c *Client, ctx context.Context) error {
		return second((&Handle{c: c, id: "1"}).Read(ctx, 10, 0))
	}
	links := func(c *Client, ctx context.Context) error { return second(c.Readlink(ctx, "/x")) }
	opens := func(c *Client, ctx context.Context) error {
		return second(c.Open(ctx, "/x", Read, 0)())
	}
	all := func(kind byte, body ...byte) func(byte, uint32) []byte {
		return func(_ byte, id uint32) []byte { return packet(kind, id, body...) }
	}
	raw := func(b ...byte) func(byte, uint32) []byte {
		return func(byte, uint32) []byte { return b }
	}
	badNames := names(
		"..", ".", "", "a/b", "/etc/passwd", "nul\x00", strings.Repeat("x", 256), "good",
	)
	hostErrno := append(
		[]byte{0, 0, 0, statusFailure}, long(33, "transport endpoint is not connected")...,
	)
	seeks := func(off int64) func(c *Client, ctx context.Context) error {
		return func(c *Client, ctx context.Context) error {
			return second((&Handle{c: c, id: "1"}).Seek(ctx, off, unix.SEEK_DATA))
		}
	}
	vfs := func(c *Client, ctx context.Context) error { return second(c.StatVFS(ctx, "/x")) }
	for _, x := range []struct {
		name   string
		answer func(kind byte, id uint32) []byte
		do     func(*Client, context.Context) error
		want   error
	}{
		{"names", all(kindName, badNames...), lists, nil},
		{"a lie about names", all(kindName, 255, 255, 255, 255), lists, ErrProtocol},
		{"a lie about a name", all(kindName, append([]byte{0, 0, 0, 1}, long(1<<31, "x")...)...),
			lists, ErrProtocol},
		{"a lie about extended attributes", all(kindAttrs, 0x80, 0, 0, 0, 255, 255, 255, 255),
			stats, ErrProtocol},
		{"an endless packet", raw(255, 255, 255, 255, kindAttrs), stats, ErrProtocol},
		{"an empty packet", raw(0, 0, 0, 0, kindAttrs), stats, ErrProtocol},
		{"a short packet", raw(0, 0, 0, 3, kindAttrs, 0, 0), stats, ErrProtocol},
		{"no attributes", all(kindAttrs), stats, ErrProtocol},
		{"a short status", all(kindStatus, 0), stats, ErrProtocol},
		{"success without an answer", all(kindStatus, 0, 0, 0, 0), stats, ErrProtocol},
		{"an end without an answer", all(kindStatus, 0, 0, 0, 1), stats, syscall.EIO},
		{"an errno of the host's mount", all(kindStatus, hostErrno...), stats, syscall.EIO},
		{"another kind", all(kindHandle, 0, 0, 0, 0), stats, ErrProtocol},
		{"nobody's answer", func(_ byte, id uint32) []byte {
			return packet(kindAttrs, id+1, 0, 0, 0, 0)
		}, stats, ErrProtocol},
		{"more than asked for", all(kindData, long(11, "hello world")...), reads, ErrProtocol},
		{"a long link", all(kindName, names(strings.Repeat("x", 5000))...), links, syscall.EIO},
		{"an empty link", all(kindName, names("")...), links, syscall.EIO},
		{"a cut link", all(kindName, names("a\x00b")...), links, syscall.EIO},
		{"two links", all(kindName, names("a", "b")...), links, ErrProtocol},
		{"a long handle", all(kindHandle, long(300, strings.Repeat("h", 300))...),
			opens, ErrProtocol},
		{"data before the offset", all(kindReply, 0, 0, 0, 0, 0, 0, 0, 9), seeks(10), ErrProtocol},
		{"data at a negative offset", all(kindReply, 255, 0, 0, 0, 0, 0, 0, 0),
			seeks(0), ErrProtocol},
		{"half an offset", all(kindReply, 0, 0, 0, 0), seeks(0), ErrProtocol},
		{"success without an offset", all(kindStatus, 0, 0, 0, 0), seeks(0), ErrProtocol},
		{"data at the end", all(kindReply, 127, 255, 255, 255, 255, 255, 255, 255), seeks(10), nil},
		{"half a file system", all(kindReply, 1, 2, 3), vfs, ErrProtocol},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := dial(t, answering(x.answer))
			if err := x.do(c, within(t, 10*time.Second)); err != x.want {
				t.Errorf("%v, want %v", err, x.want)
			}
		})
	}
}

func TestCutOff(t *testing.T) {
	c := dial(t, func(conn net.Conn) {
		readPacket(conn)
		conn.Write(greeting(kindVersion))
		readPacket(conn)
		conn.Write(packet(kindAttrs, 1)[:6])
		conn.Close()
	})
	_, err := c.Stat(within(t, 10*time.Second), "/x")()
	var errno syscall.Errno
	if err == nil || errors.As(err, &errno) {
		t.Errorf("%v", err)
	}
	<-c.Done()
}

// TestHang has a server that answers nothing: calls end with their contexts, and their number is
// bounded.
func TestHang(t *testing.T) {
	c := dial(t, func(conn net.Conn) {
		defer conn.Close()
		readPacket(conn)
		conn.Write(greeting(kindVersion))
		io.Copy(io.Discard, conn)
	})
	ctx, cancel := context.WithCancel(context.Background())
	cancelled := make(chan error)
	go func() { cancelled <- second(c.Stat(ctx, "/x")()) }()
	err := second(c.Stat(within(t, 20*time.Millisecond), "/y")())
	if err != context.DeadlineExceeded {
		t.Error(err)
	}
	cancel()
	if err := <-cancelled; err != context.Canceled {
		t.Error(err)
	}
	for range pendingCalls {
		c.Stat(ctx, "/z") // nobody waits for it
	}
	all := within(t, 20*time.Millisecond)
	err = nil
	for range pendingCalls {
		if k, e := c.begin(all, kindLstat, nil, nil); e != nil {
			err = e
		} else {
			c.leave(k)
		}
	}
	if err != context.DeadlineExceeded {
		t.Errorf("more than %d calls are without an answer: %v", pendingCalls, err)
	}
	why := errors.New("why")
	c.Close(why)
	if err := second(c.Stat(context.Background(), "/x")()); err != why {
		t.Error(err)
	}
}

// TestDeaf has a server that does not even read.
func TestDeaf(t *testing.T) {
	ended := make(chan struct{})
	c := dial(t, func(conn net.Conn) {
		readPacket(conn)
		conn.Write(greeting(kindVersion))
		<-ended
	})
	defer close(ended)
	for range 3 {
		h := &Handle{c: c, id: "1"}
		_, err := h.Write(within(t, 20*time.Millisecond), make([]byte, 3*MaxData), 0)
		if err != context.DeadlineExceeded {
			t.Error(err)
		}
	}
	c.Close(net.ErrClosed)
}

// TestLateHandle closes what was opened for who went away.
func TestLateHandle(t *testing.T) {
	asked, gone, closed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	c := dial(t, answering(func(kind byte, id uint32) []byte {
		switch kind {
		case kindOpen:
			close(asked)
			<-gone
			return packet(kindHandle, id, 0, 0, 0, 1, '7')
		case kindClose:
			close(closed)
		}
		return packet(kindStatus, id, 0, 0, 0, 0, 0, 0, 0, 0)
	}))
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-asked; cancel() }()
	if err := second(c.Open(ctx, "/x", Read, 0)()); err != context.Canceled {
		t.Error(err)
	}
	close(gone)
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("it stays open")
	}
}

// TestHandleMeetsItsEnd has an answer arrive in the moment in which its caller leaves.
func TestHandleMeetsItsEnd(t *testing.T) {
	closed := make(chan struct{})
	c := dial(t, answering(func(kind byte, id uint32) []byte {
		if kind == kindClose {
			close(closed)
		}
		return packet(kindStatus, id, 0, 0, 0, 0, 0, 0, 0, 0)
	}))
	k := &call{id: 1000, reply: make(chan reply, 1), late: c.closeLate}
	c.mu.Lock()
	c.calls[k.id] = k
	c.mu.Unlock()
	// The call has not taken its slot yet, which holds the answer up in the middle.
	answered := make(chan error)
	go func() {
		answered <- c.deliver(kindHandle, decoder{b: packet(0, k.id, 0, 0, 0, 1, '7')[5:]})
	}()
	for waits := true; waits; runtime.Gosched() {
		c.mu.Lock()
		waits = c.calls[k.id] != nil
		c.mu.Unlock()
	}
	c.leave(k)
	c.slots <- struct{}{}
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("the guest's handle stays open")
	}
}

func TestGreeting(t *testing.T) {
	for name, greeting := range map[string][]byte{
		"silent":      nil,
		"old":         {0, 0, 0, 5, kindVersion, 0, 0, 0, 2},
		"short":       {0, 0, 0, 2, kindVersion, 3},
		"another":     {0, 0, 0, 5, kindStatus, 0, 0, 0, 3},
		"ssh, rather": []byte("SSH-2.0-OpenSSH_9.2\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			here, there := net.Pipe()
			go func() {
				readPacket(there)
				there.Write(greeting)
				io.Copy(io.Discard, there)
			}()
			limit, want := 10*time.Second, ErrProtocol
			if greeting == nil {
				limit, want = 20*time.Millisecond, context.DeadlineExceeded
			}
			_, err := NewClient(within(t, limit), here)
			if err != want {
				t.Errorf("%v, want %v", err, want)
			}
		})
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 1, 'x', 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0x80, 0, 0, 13, 0, 0, 0, 0, 0, 0, 0, 5})
	f.Fuzz(func(t *testing.T, b []byte) {
		d := decoder{b: b}
		if a := d.attr(); a.Size > 1<<63-1 || a.Mode&^uint32(syscall.S_IFMT|0o7777) != 0 {
			t.Errorf("%+v", a)
		}
		d = decoder{b: b}
		switch err := statusError(&d); err.(type) {
		case nil, syscall.Errno:
		default:
			if err != io.EOF {
				t.Error(err)
			}
		}
	})
}
