package kvm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The guest is in real mode, where a CPU begins: it needs no page tables. On processors of Intel's
// without "unrestricted guest" KVM emulates that mode.
const (
	guestMemory = 16 << 10 // from address 0 on
	guestStart  = 0x1000   // of its program
	guestPort   = 0xf1     // where it writes its result
	guestResult = 45

	// tssAddr is where KVM keeps three pages that Intel's processors need for real mode. It is
	// beyond the guest's memory, where QEMU has it too.
	tssAddr = 0xfffbd000
)

// program computes, goes through its memory, writes the result to guestPort, and halts: ten
// instructions.
var program = []byte{
	0xb8, 0x07, 0x00, // mov ax, 7
	0xbb, 0x06, 0x00, // mov bx, 6
	0xf7, 0xe3, // mul bx
	0xb9, 0x03, 0x00, // mov cx, 3
	0x01, 0xc8, // add ax, cx
	0xa3, 0x00, 0x20, // mov [0x2000], ax
	0x8b, 0x1e, 0x00, 0x20, // mov bx, [0x2000]
	0x89, 0xd8, // mov ax, bx
	0xe6, guestPort, // out guestPort, al
	0xf4, // hlt
}

// kickWait is how long a vCPU may need to leave its guest after a signal.
const kickWait = 250 * time.Millisecond

// Try runs a guest of ten instructions on the device, and returns nil if it did what it should. It
// blocks until ctx ends at most, and kickWait longer. Then the error is ErrHangs, or that of ctx if
// the guest was not made yet. It leaves a thread behind only where the kernel does not even obey a
// signal.
func Try(ctx context.Context, device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	g := &guest{dev: f}
	ended := make(chan error, 1)
	go func() {
		// A thread of its own, so that a signal reaches KVM_RUN and nothing else.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		g.thread.Store(int64(unix.Gettid()))
		defer g.close()
		ended <- g.runAll()
	}()
	select {
	case err = <-ended:
		return err
	case <-ctx.Done():
	}
	late := ctx.Err()
	if g.page.Load() != nil {
		late = ErrHangs
	}
	g.kick()
	select {
	case err = <-ended:
		if errors.Is(err, unix.EINTR) {
			err = late
		}
		return err
	case <-time.After(kickWait):
		return late
	}
}

// guest is one VM. Its goroutine owns it, thread, page and stop apart.
type guest struct {
	dev     *os.File
	machine fd
	cpu     fd
	made    []func() // what close undoes, last first

	thread atomic.Int64            // that runs the vCPU
	page   atomic.Pointer[runPage] // once the vCPU is there
	stop   atomic.Bool
	shared []byte // the same as page, whole
}

func (g *guest) close() {
	for n := len(g.made) - 1; n >= 0; n-- {
		g.made[n]()
	}
	g.dev.Close()
}

// kick makes KVM_RUN return EINTR, now or when it is called. SIGURG is the signal with which Go
// interrupts its own threads, and means nothing else to it.
func (g *guest) kick() {
	g.stop.Store(true)
	if page := g.page.Load(); page != nil {
		page.immediateExit = 1
	}
	_ = unix.Tgkill(os.Getpid(), int(g.thread.Load()), unix.SIGURG)
}

// runAll makes the guest, runs it, and compares what it does.
func (g *guest) runAll() error {
	if err := g.make(); err != nil {
		return err
	}
	if err := g.runOn(); err != nil {
		return err
	}
	page := g.page.Load()
	at := page.dataOffset
	switch {
	case page.exitReason != exitIO:
		return page.unexpected("write to a port")
	case page.direction != ioOut || page.port != guestPort || page.size != 1 || page.count != 1 ||
		at >= uint64(len(g.shared)):
		return fmt.Errorf("%w: it used port %#x, not %#x", ErrBroken, page.port, guestPort)
	case g.shared[at] != guestResult:
		return fmt.Errorf("%w: it computed %d, not %d", ErrBroken, g.shared[at], guestResult)
	}
	if err := g.runOn(); err != nil {
		return err
	}
	if page.exitReason != exitHLT {
		return page.unexpected("halt")
	}
	return nil
}

// make makes the VM, its memory and its only CPU.
func (g *guest) make() (err error) {
	dev := int(g.dev.Fd())
	if v, err := ioctl(dev, getAPIVersion, 0); err != nil || v != apiVersion {
		return fmt.Errorf("%w: KVM's interface has version %d, not %d (%v)", ErrBroken, v,
			apiVersion, err)
	}
	size, err := ioctl(dev, getMmapSize, 0)
	if err != nil {
		return os.NewSyscallError("KVM_GET_VCPU_MMAP_SIZE", err)
	}
	if uintptr(size) < unsafe.Sizeof(runPage{}) {
		return fmt.Errorf("%w: a vCPU shares %d bytes only", ErrBroken, size)
	}
	if g.machine, err = newFD(dev, createVM, 0); err != nil {
		return os.NewSyscallError("KVM_CREATE_VM", err)
	}
	g.made = append(g.made, g.machine.close)
	if err := g.giveMemory(); err != nil {
		return err
	}
	if _, err := ioctl(int(g.machine), setTSSAddr, tssAddr); err != nil {
		return os.NewSyscallError("KVM_SET_TSS_ADDR", err)
	}
	if g.cpu, err = newFD(int(g.machine), createVCPU, 0); err != nil {
		return os.NewSyscallError("KVM_CREATE_VCPU", err)
	}
	g.made = append(g.made, g.cpu.close)
	g.shared, err = unix.Mmap(int(g.cpu), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	g.made = append(g.made, func() { _ = unix.Munmap(g.shared) })
	g.page.Store((*runPage)(unsafe.Pointer(&g.shared[0])))
	return g.reset()
}

// giveMemory gives the VM its memory, with the program in it.
func (g *guest) giveMemory() error {
	memory, err := unix.Mmap(-1, 0, guestMemory, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	g.made = append(g.made, func() { _ = unix.Munmap(memory) })
	copy(memory[guestStart:], program)
	return pass(int(g.machine), setMemory, "KVM_SET_USER_MEMORY_REGION", &memoryRegion{
		memorySize: guestMemory, userspace: uint64(uintptr(unsafe.Pointer(&memory[0])))})
}

// reset points the CPU, which is in real mode, to the program.
func (g *guest) reset() error {
	var s sregs
	if err := pass(int(g.cpu), getSregs, "KVM_GET_SREGS", &s); err != nil {
		return err
	}
	s.cs.base, s.cs.selector = 0, 0
	if err := pass(int(g.cpu), setSregs, "KVM_SET_SREGS", &s); err != nil {
		return err
	}
	const always = 2 // of the flags, one bit is set at all times
	return pass(int(g.cpu), setRegs, "KVM_SET_REGS", &regs{rip: guestStart, rflags: always})
}

// runOn lets the guest run until it does something that KVM returns for. Signals of Go's own
// runtime interrupt it, too.
func (g *guest) runOn() error {
	for {
		if g.stop.Load() {
			return unix.EINTR
		}
		_, err := ioctl(int(g.cpu), runCPU, 0)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		return os.NewSyscallError("KVM_RUN", err)
	}
}

// exitNames are the reasons that a guest of this program could meet.
var exitNames = map[uint32]string{
	exitIO: "wrote to a port", exitHLT: "halted", exitMMIO: "left its memory",
	exitShutdown: "shut down", exitFailEntry: "could not be entered",
	exitInternalError: "met an error within KVM",
}

// unexpected returns the error of a guest that did not do what it should.
func (p *runPage) unexpected(want string) error {
	what, known := exitNames[p.exitReason]
	if !known {
		what = fmt.Sprintf("ended with reason %d", p.exitReason)
	}
	switch p.exitReason {
	case exitFailEntry:
		what += fmt.Sprintf(" (hardware reason %#x)", p.detail())
	case exitInternalError:
		var b [8]byte
		binary.NativeEndian.PutUint64(b[:], p.detail())
		what += fmt.Sprintf(" (suberror %d)", binary.NativeEndian.Uint32(b[:]))
	}
	return fmt.Errorf("%w: it %s where it should %s", ErrBroken, what, want)
}
