package qemu

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLeaseCID(t *testing.T) {
	taken := map[uint32]bool{}
	for n := range 3 { // addresses in use before a free one
		var asked []uint32
		got, err := leaseCID(func(cid uint32) error {
			asked = append(asked, cid)
			if cid < firstCID || cid == unix.VMADDR_CID_ANY {
				t.Errorf("asked for %d", cid)
			}
			if len(asked) <= n {
				return unix.EADDRINUSE
			}
			return nil
		})
		if err != nil || len(asked) != n+1 || got != asked[n] || taken[got] {
			t.Errorf("after %d in use: %d of %v, %v", n, got, asked, err)
		}
		taken[got] = true
	}
	asked := 0
	count := func(err error) func(uint32) error {
		return func(uint32) error { asked++; return err }
	}
	_, err := leaseCID(count(unix.EADDRINUSE))
	if !errors.Is(err, unix.EADDRINUSE) || asked > leaseTries {
		t.Errorf("all in use: %v after %d", err, asked)
	}
	asked = 0
	if _, err = leaseCID(count(unix.ENOTTY)); !errors.Is(err, unix.ENOTTY) || asked != 1 {
		t.Errorf("no such ioctl: %v after %d", err, asked)
	}
}

func TestGuestCID(t *testing.T) {
	for line, want := range map[string]uint32{
		"-device vhost-vsock-device,guest-cid=65543,vhostfd=7":                         65543,
		"-device vhost-vsock-pci,guest-cid=4294967294,vhostfd=7":                       4294967294,
		"-device vhost-vsock-pci,guest-cid=3":                                          3,
		"-device vhost-vsock-pci,guest-cid=2":                                          0,
		"-device vhost-vsock-pci,guest-cid=4294967296":                                 0,
		"-device vhost-vsock-pci,guest-cid=-1,vhostfd=7":                               0,
		"-device vhost-vsock-pci,guest-cid=x":                                          0,
		"-device vhost-vsock-pci":                                                      0,
		"-name vhost-vsock-pci,guest-cid=7":                                            0,
		"-device virtio-net-pci,guest-cid=7":                                           0,
		"-device virtio-rng-pci -device vhost-vsock-pci,guest-cid=9,vhostfd=7 -append": 9,
		"": 0,
	} {
		if got := guestCID(strings.Fields(line)); got != want {
			t.Errorf("%q: %d", line, got)
		}
	}
}

// noVhost skips a test where guests have no vsock.
func noVhost(t *testing.T) {
	f, err := os.OpenFile(vhostVsock, os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no vsock for guests: modprobe vhost_vsock (%v)", err)
	}
	f.Close()
}

// TestClaimCID: an address belongs to one file, which may claim it again, as QEMU does.
func TestClaimCID(t *testing.T) {
	noVhost(t)
	open := func() *os.File {
		f, err := os.OpenFile(vhostVsock, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	a, b := open(), open()
	cid, err := leaseCID(func(cid uint32) error { return claimCID(a, cid) })
	if err != nil {
		t.Fatal(err)
	}
	if err := claimCID(a, cid); err != nil {
		t.Errorf("claimed again: %v", err)
	}
	if err := claimCID(b, cid); err != unix.EADDRINUSE {
		t.Errorf("claimed by another: %v", err)
	}
	if err := claimCID(b, 2); err == nil {
		t.Error("a guest has the host's address")
	}
	a.Close()
	if err := claimCID(b, cid); err != nil {
		t.Errorf("claimed when it was free: %v", err)
	}
}

// lines is a log that may be read during writes.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), text)
}

// strange connects to a guest's agent as anybody on this host can, and returns the answer.
func strange(t *testing.T, ctx context.Context, cid uint32, port uint32) []byte {
	t.Helper()
	conn, err := dialVsock(ctx, cid, port)
	if err != nil {
		return nil
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(conn, "GET /ping HTTP/1.1\r\nHost: agent\r\n\r\n") // its error shows below
	answer, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("port %d lets a stranger stay", port)
	}
	return answer
}

// TestVsock boots a real guest with vsock. The daemon uses it, also after an adoption. Strangers
// get no answer.
func TestVsock(t *testing.T) {
	noVhost(t)
	img := builtinImage(t)
	b := newBench(t)
	var log lines
	options := Options{Log: slog.New(slog.NewTextHandler(&log, nil))}
	var err error
	if b.Driver, err = New(options); err != nil {
		t.Fatal(err)
	}
	b.spec.Image, b.spec.Config.Memory = img, img.Memory
	m := b.start(t)
	ctx := within(t, 240*time.Second)
	const overVsock = "vsock leads to the agent"
	if _, err := m.Guest().Ping(ctx); err != nil || !log.has(overVsock) {
		t.Fatalf("%v; the log: %s", err, &log.b)
	}
	cid := guestCID(readArgs(m.Process().PID))
	if cid < firstCID {
		t.Fatalf("its address is %d", cid)
	}
	for _, port := range []uint32{1023, 1024} {
		answer := strange(t, ctx, cid, port)
		if len(answer) > 32 || bytes.Contains(answer, []byte("HTTP")) {
			t.Errorf("port %d answers a stranger: %q", port, answer)
		}
	}

	// A VM of the same number, of another daemon.
	other := newBench(t)
	second := other.start(t)
	if got := guestCID(readArgs(second.Process().PID)); got == cid || got < firstCID {
		t.Errorf("the addresses are %d and %d", cid, got)
	}
	if err := second.Kill(ctx); err != nil {
		t.Error(err)
	}

	// The next daemon has another secret.
	m.Close()
	var later lines
	next, err := New(Options{Log: slog.New(slog.NewTextHandler(&later, nil))})
	if err != nil {
		t.Fatal(err)
	}
	adopted, err := next.Adopt(ctx, b.spec, m.Process(), b.notify)
	if err != nil {
		t.Fatal(err)
	}
	defer adopted.Close()
	m = adopted.(*Machine)
	if _, err := m.Guest().Ping(ctx); err != nil || !later.has(overVsock) {
		t.Errorf("adopted: %v; the log: %s", err, &later.b)
	}
	if err := m.Kill(ctx); err != nil {
		t.Error(err)
	}
	b.exit(t, m)
}
