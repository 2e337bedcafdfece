package fs

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"banger/collector"
	"banger/collector/metrics"
	"banger/internal/host"
	"banger/vmm"
	"banger/vmm/archive"
	"banger/vmm/fake"
	"banger/vmm/guest"
	"banger/vmm/store"
)

// kernel is the other side of a Server: it sends requests as /dev/fuse would, and keeps what a
// kernel knows. A socket for packets behaves like /dev/fuse: each read is one request.
type kernel struct {
	*Server
	fd       int
	unique   uint64
	panicked chan string

	mu      sync.Mutex
	answers map[uint64]chan []byte // by the number of the request

	opens   map[handleKey]open
	ever    map[handleKey]open // those that a script had open
	lookups map[uint64]uint64  // by the node
}

// open is a file that an answer has opened.
type open struct {
	node, fh uint64
	uid      uint32
	dir      bool
}

// handleKey is a handle. Those of the tree and those of guests' files are counted apart.
type handleKey struct {
	inGuest bool
	fh      uint64
}

func handleOf(node, fh uint64) handleKey { return handleKey{inGuest(node), fh} }

// Numbers of requests of linux/fuse.h.
const (
	opForget     = 2
	opRead       = 15
	opWrite      = 16
	opRelease    = 18
	opInit       = 26
	opReadDir    = 28
	opReleaseDir = 29
	opInterrupt  = 36
	opDestroy    = 38
	opNotify     = 41
	opBatch      = 42
	opReadPlus   = 44
)

// newKernel serves a tree of fake VMs and no mount.
func newKernel(t testing.TB) *kernel {
	t.Helper()
	dir, ctx := t.TempDir(), context.Background()
	records, err := store.Open(ctx, filepath.Join(dir, "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	silent := slog.New(slog.DiscardHandler)
	images := &memoryImages{of: map[uint64]vmm.ImageInfo{}}
	if _, err := images.Create(ctx, vmm.BuiltinImage, vmm.Owner{}); err != nil {
		t.Fatal(err)
	}
	manager, err := vmm.Open(ctx, vmm.Options{StateDir: dir, Store: records,
		Drivers: []vmm.Driver{fake.New()}, Network: noNetwork{}, Images: images, Log: silent,
		Defaults: vmm.Config{Image: vmm.BuiltinImage, CPUs: 1, VMM: "fake", Net: vmm.NetNone,
			IdleTimeout: vmm.NoLimit, StopTimeout: 50 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	reads := collector.New(collector.Options{Manager: manager})
	k := &kernel{panicked: make(chan string, 1), answers: map[uint64]chan []byte{},
		opens: map[handleKey]open{}, ever: map[handleKey]open{}, lookups: map[uint64]uint64{}}
	k.Server = newServer(Options{Dir: dir, Manager: manager, Collector: reads, Images: images,
		Archives: archive.New(archive.Options{Manager: manager, Images: images,
			Jobs: host.NewJobs(0)}),
		Metrics: metrics.New(metrics.Options{Manager: manager, Collector: reads}),
		Log:     silent, Group: -1, Config: func() string { return "config\n" }})
	k.sessions = newSessions(50 * time.Millisecond)
	k.connect(t)
	t.Cleanup(func() {
		k.cancel()
		k.guests.Close()
		k.sessions.closeAll()
		unix.Shutdown(k.fd, unix.SHUT_RDWR)
		reads.Close()
		manager.Close(ctx)
	})
	return k
}

// connect has go-fuse serve one end of a socket, by the name that it takes for an open device.
func (k *kernel) connect(t testing.TB) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds { // for answers of a megabyte; root only
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20)
	}
	k.fd = fds[0]
	init := binary.LittleEndian.AppendUint32(nil, 7)   // major of the protocol
	init = binary.LittleEndian.AppendUint32(init, 31)  // minor
	init = binary.LittleEndian.AppendUint64(init, 1e6) // read-ahead, and no flags
	k.write(t, opInit, 0, 0, 0, init)
	bridge, _ := newBridge(k.Server)
	o := k.mountOptions()
	o.DirectMountStrict, o.Logger = false, log.New(io.Discard, "", 0)
	o.PanicHandler = func(v any) fuse.Status {
		select {
		case k.panicked <- fmt.Sprintf("%v\n%s", v, debug.Stack()):
		default:
		}
		return fuse.EIO
	}
	k.fuse, err = fuse.NewServer(bridge, fmt.Sprintf("/dev/fd/%d", fds[1]), o)
	if err != nil {
		t.Fatal(err)
	}
	go k.fuse.Serve() // ends with the socket
	go k.receive()
}

// write sends a request and returns its number.
func (k *kernel) write(t testing.TB, opcode uint32, node uint64, uid, pid uint32,
	body []byte) uint64 {
	t.Helper()
	k.unique += 2 // as the kernel's, whose odd numbers are those of interrupts
	p := binary.LittleEndian.AppendUint32(nil, uint32(40+len(body)))
	p = binary.LittleEndian.AppendUint32(p, opcode)
	p = binary.LittleEndian.AppendUint64(p, k.unique)
	p = binary.LittleEndian.AppendUint64(p, node)
	for _, v := range []uint32{uid, uid, pid, 0} {
		p = binary.LittleEndian.AppendUint32(p, v)
	}
	k.mu.Lock()
	k.answers[k.unique] = make(chan []byte, 1)
	k.mu.Unlock()
	if _, err := unix.Write(k.fd, append(p, body...)); err != nil {
		t.Fatal(err)
	}
	return k.unique
}

// receive passes answers on until the socket's end. Notifications have the number 0.
func (k *kernel) receive() {
	p := make([]byte, 2<<20)
	for {
		n, err := unix.Read(k.fd, p)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n < 16 {
			return
		}
		k.mu.Lock()
		if c := k.answers[binary.LittleEndian.Uint64(p[8:])]; c != nil {
			select {
			case c <- append([]byte(nil), p[:n]...):
			default: // a second answer of an interrupt
			}
		}
		k.mu.Unlock()
	}
}

// answerTime is how long an interrupted request may take, on a busy machine.
const answerTime = 20 * time.Second

// answer returns the error and the data of an answer. A request that waits for something is
// interrupted, after which it must end.
func (k *kernel) answer(t testing.TB, request uint64, what string) (int32, []byte) {
	t.Helper()
	k.mu.Lock()
	c := k.answers[request]
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		delete(k.answers, request)
		k.mu.Unlock()
	}()
	var p []byte
	select {
	case p = <-c:
	case <-time.After(20 * time.Millisecond):
		interrupt := k.write(t, opInterrupt, 0, 0, 0,
			binary.LittleEndian.AppendUint64(nil, request))
		k.mu.Lock()
		delete(k.answers, interrupt) // answered only when it comes too late
		k.mu.Unlock()
		select {
		case p = <-c:
		case <-time.After(answerTime):
			debug.SetTraceback("all")
			panic(what + " is not answered")
		}
	}
	select {
	case text := <-k.panicked:
		t.Fatalf("%s: %s", what, text)
	default:
	}
	return int32(binary.LittleEndian.Uint32(p[4:])), p[16:]
}

// memoryImages is a vmm.ImageStore that builds nothing.
type memoryImages struct {
	mu   sync.Mutex
	last uint64
	of   map[uint64]vmm.ImageInfo
}

func (m *memoryImages) find(name string) (vmm.ImageInfo, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range m.of {
		if i.Name == name {
			return i, true
		}
	}
	return vmm.ImageInfo{}, false
}

func (m *memoryImages) Names() (names []string) {
	for _, i := range m.Infos() {
		names = append(names, i.Name)
	}
	return names
}

func (m *memoryImages) Image(name string) (vmm.Image, error) {
	if i, ok := m.find(name); ok {
		return i.Image, nil
	}
	return vmm.Image{}, vmm.ErrNotFound
}

func (*memoryImages) Seed(string, vmm.NetMode, guest.Config) ([]byte, error) {
	return nil, vmm.ErrUnsupported
}

func (m *memoryImages) Infos() (all []vmm.ImageInfo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for n := uint64(1); n <= m.last; n++ {
		if i, ok := m.of[n]; ok {
			all = append(all, i)
		}
	}
	return all
}

func (m *memoryImages) Info(number uint64) (vmm.ImageInfo, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := m.of[number]
	return i, ok
}

func (m *memoryImages) Create(_ context.Context, name string, owner vmm.Owner,
) (vmm.ImageInfo, error) {
	if err := vmm.CheckName(name); err != nil {
		return vmm.ImageInfo{}, err
	}
	if _, ok := m.find(name); ok {
		return vmm.ImageInfo{}, vmm.ErrExists
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last++
	i := vmm.ImageInfo{Image: vmm.Image{Name: name, Memory: 128 << 20}, Number: m.last,
		Owner: owner, Status: vmm.ImageReady}
	m.of[m.last] = i
	return i, nil
}

func (*memoryImages) Build(context.Context, uint64, string, vmm.Caller) error {
	return vmm.ErrInvalid
}
func (*memoryImages) Wait(ctx context.Context, _ uint64) (time.Duration, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}
func (m *memoryImages) Remove(_ context.Context, name string, _ vmm.Permit) error {
	i, ok := m.find(name)
	if !ok || name == vmm.BuiltinImage {
		return vmm.ErrNotPermitted
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.of, i.Number)
	return nil
}
func (*memoryImages) Refuse(uint64, error)          {}
func (*memoryImages) Blobs() (vmm.BlobCount, error) { return vmm.BlobCount{}, nil }
func (*memoryImages) Collect(context.Context) error { return nil }

// noNetwork is a vmm.Network without a bridge.
type noNetwork struct{}

func (noNetwork) Check(mode vmm.NetMode) error {
	if mode == vmm.NetBridge {
		return vmm.ErrNotPermitted
	}
	return nil
}
func (noNetwork) Prefix() netip.Prefix             { return netip.Prefix{} }
func (noNetwork) Gateway() netip.Addr              { return netip.Addr{} }
func (noNetwork) Address6(netip.Addr) netip.Prefix { return netip.Prefix{} }
func (noNetwork) Gateway6() netip.Addr             { return netip.Addr{} }
func (noNetwork) MTU() int                         { return 0 }
func (noNetwork) Connect(vmm.Connection) error     { return nil }
func (noNetwork) Disconnect(uint64)                {}
func (noNetwork) Settle() error                    { return nil }
func (noNetwork) Release() error                   { return nil }
func (noNetwork) LinkStats() (map[uint64]vmm.LinkStats, error) {
	return nil, vmm.ErrUnsupported
}
func (noNetwork) Tap(context.Context, uint64, string) (*os.File, error) {
	return nil, vmm.ErrNotPermitted
}
