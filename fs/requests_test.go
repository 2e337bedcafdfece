package fs

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/fs/guestfs"
	"banger/vmm"
)

// shapes are the bodies of the kernel's requests (linux/fuse.h), by the number of the request. A
// letter is a field: u and w any 64 and 32 bits, h a handle, o an offset, n a node, s a size, f the
// flags of an open, m a mode, . a name; * is what is written.
var shapes = map[uint32]string{
	1: ".", opForget: "u", 3: "wwh", 4: "wwhouuuuwwwmwwww", 5: "", 6: "..", 8: "mwww.", 9: "mw.",
	10: ".", 11: ".", 12: "n..", 13: "n.", 14: "fw", opRead: "hoswufw", opWrite: "hoswufw*",
	17: "", opRelease: "hfwu", 20: "hww", 21: "wws..", 22: "sw.", 23: "sw", 24: ".", 25: "hwwu",
	27: "fw", opReadDir: "hoswufw", opReleaseDir: "hfwu", 30: "hww", 31: "huuuwwww", 34: "ww",
	35: "fmww.", 37: "uww", 39: "hwwuws", 40: "huww", 43: "houuww", opReadPlus: "hoswufw",
	45: "nww..", 46: "howw", 47: "honhouu", 50: "u", 51: "fmww", 52: "hwwwww",
}

// opcodes are the keys of shapes, in order.
var opcodes = func() (all []uint32) {
	for op := range uint32(64) {
		if _, ok := shapes[op]; ok {
			all = append(all, op)
		}
	}
	return all
}()

// script is fuzzed bytes, from which requests are made.
type script []byte

func (s *script) byte() (b byte) {
	if len(*s) > 0 {
		b, *s = (*s)[0], (*s)[1:]
	}
	return b
}

func (s *script) bits() uint64 {
	var b [8]byte
	*s = (*s)[copy(b[:], *s):]
	return binary.LittleEndian.Uint64(b[:])
}

// pick returns one of the values, or any bits.
func pick[T uint32 | uint64](s *script, values ...T) T {
	if i := int(s.byte()); i < 240 && len(values) > 0 {
		return values[i%len(values)]
	}
	return T(s.bits())
}

var (
	fuzzNames = []string{"a", "b", "c", "vms", "images", "exec", "state", "config", "fs", "snapshots",
		"s1", "wait", "healthy", "tcp", "80", "clone", "1", "ctl", "data", "argv", "publish",
		"export", "import", "console", "log", "events", "health", "list", "etc", "file",
		"", ".", "..", "a/b", "A", strings.Repeat("x", 63), strings.Repeat("x", 300)}
	fuzzTexts = []string{"start", "stop", "kill", "pause", "resume", "restart", "run echo x", "argv",
		"vmm fake", "disk 1M", "idle_timeout 1", "1", "0", "max", "s1", "reset", "TERM", "80x24",
		"8080:80", "gc", "a\n", "\n", "", "\x00", "user root\nrun cat", strings.Repeat("y", 5000)}
	// Fake disks are copied with all their zeros: large ones would only cost time.
	large = regexp.MustCompile(`\d{6}|\d[GTPEgtpe]`)
)

// name ends with a NUL byte, mostly.
func (s *script) name() string {
	i := int(s.byte())
	if i < 250 {
		return fuzzNames[i%len(fuzzNames)] + "\x00"
	}
	n := min(int(s.byte()), len(*s))
	text := string((*s)[:n])
	*s = (*s)[n:]
	return text
}

func (s *script) text() string {
	i := int(s.byte())
	if i < 220 {
		return fuzzTexts[i%len(fuzzTexts)]
	}
	n := min(int(s.byte()), len(*s))
	text := string((*s)[:n])
	*s = (*s)[n:]
	if large.MatchString(text) {
		return ""
	}
	return text
}

// rawRequest is a request that a script sends.
type rawRequest struct {
	opcode, uid, pid uint32
	node, fh         uint64
	size             uint32
	body             []byte
}

// next makes a request of the script's next bytes.
func (k *kernel) next(s *script) rawRequest {
	r := rawRequest{opcode: opcodes[int(s.byte())%len(opcodes)]}
	shape := shapes[r.opcode]
	if s.byte() == 255 {
		r.opcode = uint32(s.bits()) // one that never was
		switch r.opcode {
		case opInit, opDestroy, opInterrupt, opNotify, opBatch, opForget:
			r.opcode = 0
		}
	}
	r.node, r.uid = pick(s, k.nodeNumbers()...), pick[uint32](s, 0, 1000, 1001)
	if strings.Contains(shape, "h") {
		r.fh = pick[uint64](s, 0, 1, 1<<64-1)
		if all := k.sortedOpens(); len(all) > 0 && s.byte() < 240 {
			o := all[int(s.byte())%len(all)]
			if r.fh = o.fh; s.byte() < 224 {
				r.node, r.uid = o.node, o.uid
			}
		}
	}
	r.pid = pick(s, uint32(os.Getpid()), 0)
	if r.pid != uint32(os.Getpid()) {
		r.pid = 0 // another process would be any of this machine
	}
	b := binary.LittleEndian
	for _, field := range shape {
		switch field {
		case 'u':
			r.body = b.AppendUint64(r.body, pick[uint64](s, 0, 1, 1<<63))
		case 'w':
			r.body = b.AppendUint32(r.body, pick[uint32](s, 0, 1, 2, 1<<9))
		case 'h':
			r.body = b.AppendUint64(r.body, r.fh)
		case 'o':
			r.body = b.AppendUint64(r.body, pick[uint64](s, 0, 1, 4096, 1<<20, 1<<31, 1<<62, 1<<63,
				1<<64-1, 1<<64-4096))
		case 'n':
			r.body = b.AppendUint64(r.body, pick(s, k.nodeNumbers()...))
		case 's': // go-fuse and the kernel bound it (max_read)
			r.size = pick[uint32](s, 0, 1, 16, 4096, 1<<17, guestfs.MaxIO) % (guestfs.MaxIO + 1)
			r.body = b.AppendUint32(r.body, r.size)
		case 'f':
			r.body = b.AppendUint32(r.body, pick[uint32](s, syscall.O_RDONLY, syscall.O_WRONLY,
				syscall.O_RDWR, syscall.O_NONBLOCK, syscall.O_RDWR|syscall.O_NONBLOCK,
				syscall.O_WRONLY|syscall.O_TRUNC, syscall.O_WRONLY|syscall.O_APPEND))
		case 'm':
			r.body = b.AppendUint32(r.body, pick[uint32](s, 0o755, 0o40755, 0o100644, 0o20600))
		case '.':
			r.body = append(r.body, s.name()...)
		case '*':
			r.body = append(r.body, s.text()...)
		}
	}
	return r
}

// nodeNumbers are those that were answered, those of all rows, and some that never were.
func (k *kernel) nodeNumbers() (all []uint64) {
	all = []uint64{0, 1, 2, 1 << 63, 1<<63 | 1, 1<<63 | 1<<40, 1<<64 - 1}
	all = append(all, slices.Sorted(maps.Keys(k.lookups))...)
	serials := []uint64{0, imageBit | 1, imageBit | 9, sessionBit | 1, sessionBit | 1<<36, 1 << 36}
	for _, v := range k.o.Manager.VMs() {
		serials = append(serials, v.Serial())
	}
	for _, serial := range serials {
		for _, f := range rows {
			all = append(all, nodeID(serial, f.number, 0), nodeID(serial, f.number, 80))
		}
	}
	return all
}

func (k *kernel) sortedOpens() []open {
	return slices.SortedFunc(maps.Values(k.opens), func(a, b open) int {
		return cmp.Or(cmp.Compare(a.node, b.node), cmp.Compare(a.fh, b.fh))
	})
}

// sent is a request whose answer was not looked at.
type sent struct {
	rawRequest
	number uint64
}

func (r *rawRequest) String() string {
	return fmt.Sprintf("request %d of uid %d for node %#x with handle %d", r.opcode, r.uid, r.node,
		r.fh)
}

// run sends the requests of a script, some of them while others wait.
func (k *kernel) run(t testing.TB, s script) {
	t.Helper()
	var under, reads []sent
	for len(s) > 0 {
		x := sent{rawRequest: k.next(&s)}
		x.number = k.write(t, x.opcode, x.node, x.uid, x.pid, x.body)
		if x.opcode == opForget {
			k.forgot(x.node, binary.LittleEndian.Uint64(x.body))
			continue
		}
		if s.byte()%4 == 0 {
			under = append(under, x)
			continue
		}
		if k.took(t, x) {
			reads = append(reads, x)
		}
	}
	for _, x := range under {
		if k.took(t, x) {
			reads = append(reads, x)
		}
	}
	for _, x := range reads {
		o, known := k.ever[handleOf(x.node, x.fh)]
		byOther := x.opcode == opWrite && o.uid != x.uid && !guestfs.IsFile(x.node)
		if !known || o.node != x.node || byOther {
			t.Fatalf("%s succeeded; the handle is of uid %d and node %#x", &x, o.uid, o.node)
		}
	}
}

// took notes what an answer gives to the kernel. It reports whether a handle was used.
func (k *kernel) took(t testing.TB, x sent) bool {
	t.Helper()
	code, data := k.answer(t, x.number, x.String())
	if code != 0 {
		return false
	}
	entry := 0
	switch x.opcode {
	case 1, 6, 8, 9, 13:
		k.looked(data)
	case 35, 51: // CREATE and TMPFILE answer with a name and a handle
		k.looked(data)
		x.node, entry = binary.LittleEndian.Uint64(data), entrySize
		fallthrough
	case 14, 27:
		o := open{x.node, binary.LittleEndian.Uint64(data[entry:]), x.uid, x.opcode == 27}
		k.opens[handleOf(o.node, o.fh)], k.ever[handleOf(o.node, o.fh)] = o, o
	case opRelease, opReleaseDir:
		if h := handleOf(x.node, x.fh); k.opens[h].node == x.node {
			delete(k.opens, h)
		}
	case opReadPlus:
		for rest := data; len(rest) > entrySize+24; {
			k.looked(rest)
			name := int(binary.LittleEndian.Uint32(rest[entrySize+16:]))
			rest = rest[min(len(rest), entrySize+(24+name+7)&^7):]
		}
		fallthrough
	case opRead, opReadDir:
		if len(data) > int(x.size) {
			t.Fatalf("%s asked for %d bytes and got %d", &x, x.size, len(data))
		}
		return true
	case opWrite:
		return true
	}
	return false
}

// entrySize is that of struct fuse_entry_out.
const entrySize = 128

// looked counts a look-up of the node in an answer; 0 stands for no file.
func (k *kernel) looked(entry []byte) {
	if node := binary.LittleEndian.Uint64(entry); node != 0 {
		k.lookups[node]++
	}
}

func (k *kernel) forgot(node, lookups uint64) {
	if k.lookups[node] -= min(k.lookups[node], lookups); k.lookups[node] == 0 {
		delete(k.lookups, node)
	}
}

// end closes all files and forgets all nodes, after which the Server holds nothing of them.
func (k *kernel) end(t testing.TB) {
	t.Helper()
	for _, o := range k.opens {
		x := sent{rawRequest: rawRequest{opcode: opRelease, node: o.node, fh: o.fh, uid: o.uid,
			body: binary.LittleEndian.AppendUint64(nil, o.fh)}}
		if o.dir {
			x.opcode = opReleaseDir
		}
		x.body = append(x.body, make([]byte, 16)...)
		x.number = k.write(t, x.opcode, x.node, x.uid, 0, x.body)
		k.took(t, x)
	}
	for node, n := range k.lookups {
		k.write(t, opForget, node, 0, 0, binary.LittleEndian.AppendUint64(nil, n))
	}
	clear(k.lookups)
	clear(k.ever)
	// Requests are handled side by side: the FORGETs may not have been yet.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		left := k.left()
		if left == "" {
			break
		}
		if time.Now().After(end) {
			t.Fatal(left)
		}
	}
	k.mu.Lock()
	clear(k.answers)
	k.mu.Unlock()
	if len(k.opens) > 0 {
		t.Fatalf("files that cannot be closed: %v", k.opens)
	}
}

// left returns what the Server holds of files, "" for nothing.
func (k *kernel) left() string {
	handles := 0
	k.handles.open.Range(func(any, any) bool { handles++; return true })
	k.nodes.mu.Lock()
	nodes := len(k.nodes.known)
	k.nodes.mu.Unlock()
	files, bytes := k.allowances.all.files.Load(), k.allowances.all.bytes.Load()
	if handles+nodes != 0 || files != 0 || bytes != 0 {
		return fmt.Sprintf("held are %d handles, %d nodes, and of users %d files of %d bytes",
			handles, nodes, files, bytes)
	}
	return ""
}

// prepare leaves two VMs, one of which runs.
func (k *kernel) prepare(t testing.TB) {
	t.Helper()
	ctx := context.Background()
	m := k.o.Manager
	for _, v := range m.VMs() {
		if name := v.Snapshot().Name; name != "a" && name != "b" {
			_ = v.Do(ctx, vmm.Kill)
			_ = m.Remove(ctx, name, nil)
		}
	}
	for i, name := range []string{"a", "b"} {
		id := uint32(1000 + i)
		if m.VM(name) == nil {
			_, err := m.Create(ctx, name, vmm.Owner{UID: id, GID: id, Mode: 0o755})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = m.VM("a").Do(ctx, vmm.Start) // EBUSY during a snapshot of the last script
}

// TestNegativeOffset expects that no offset is taken for one before a file's beginning.
func TestNegativeOffset(t *testing.T) {
	k := newKernel(t)
	node := nodeID(0, rowOf(t, "version").number, 0)
	_, opened := k.answer(t, k.write(t, 14, node, 0, 0, make([]byte, 8)), "open")
	body := binary.LittleEndian.AppendUint64(nil, binary.LittleEndian.Uint64(opened))
	body = append(binary.LittleEndian.AppendUint64(body, 1<<64-1), make([]byte, 24)...)
	code, _ := k.answer(t, k.write(t, opRead, node, 0, 0, body), "read")
	if code != -int32(syscall.EINVAL) {
		t.Errorf("a read at -1 returns %d", code)
	}
}

// FuzzRequests sends requests to the daemon's side of /dev/fuse that no kernel sends: of nodes,
// handles, offsets, sizes, flags and names that never were, in any order and side by side. In
// practice only the kernel can. The connection is the daemon's alone, close-on-exec, and even root
// would have to take the descriptor out of the daemon. The kernel also checks modes and owners
// before (default_permissions), which no request here is subject to.
//
// No request panics, hangs after its interrupt, gets more than it asked for, or uses a handle of
// another node or, to write, of another user. At the end nothing is held.
func FuzzRequests(f *testing.F) {
	k := newKernel(f)
	for seed := range byte(50) {
		b := make([]byte, 400)
		rand.NewChaCha8([32]byte{seed}).Read(b)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		k.prepare(t)
		k.run(t, b[:min(len(b), 2000)])
		k.end(t)
		var m runtime.MemStats
		if runtime.ReadMemStats(&m); m.HeapAlloc > 512<<20 || runtime.NumGoroutine() > 5000 {
			t.Fatalf("%d bytes of memory, %d goroutines", m.HeapAlloc, runtime.NumGoroutine())
		}
	})
}
