package kvm

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of linux/kvm.h. Those with an argument have its size in bits 16 to 29.
const (
	getAPIVersion = 0xae00     // _IO(KVMIO, 0x00)
	createVM      = 0xae01     // _IO(KVMIO, 0x01)
	getMmapSize   = 0xae04     // _IO(KVMIO, 0x04)
	createVCPU    = 0xae41     // _IO(KVMIO, 0x41)
	setMemory     = 0x4020ae46 // _IOW(KVMIO, 0x46, struct kvm_userspace_memory_region)
	setTSSAddr    = 0xae47     // _IO(KVMIO, 0x47)
	runCPU        = 0xae80     // _IO(KVMIO, 0x80)
	setRegs       = 0x4090ae82 // _IOW(KVMIO, 0x82, struct kvm_regs)
	getSregs      = 0x8138ae83 // _IOR(KVMIO, 0x83, struct kvm_sregs)
	setSregs      = 0x4138ae84 // _IOW(KVMIO, 0x84, struct kvm_sregs)
	getTSCKHz     = 0xaea3     // _IO(KVMIO, 0xa3)
)

const apiVersion = 12 // of every kernel since 2.6.22

// Reasons for which KVM_RUN returns (exit_reason of struct kvm_run).
const (
	exitIO            = 2
	exitHLT           = 5
	exitMMIO          = 6
	exitShutdown      = 8
	exitFailEntry     = 9
	exitInternalError = 17
)

const ioOut = 1 // KVM_EXIT_IO_OUT

// In the following structs of x86, fields without a name are those that no code here uses. The
// kernel fills them, and they go back as they are.

// memoryRegion is struct kvm_userspace_memory_region. Its slot is 0.
type memoryRegion struct {
	_, _       uint32 // slot, flags
	_          uint64 // guest_phys_addr
	memorySize uint64
	userspace  uint64
}

// regs is struct kvm_regs.
type regs struct {
	_           [16]uint64
	rip, rflags uint64
}

// segment is struct kvm_segment.
type segment struct {
	base     uint64
	_        uint32 // limit
	selector uint16
	_        [10]uint8
}

// table is struct kvm_dtable.
type table struct {
	_ uint64    // base
	_ [4]uint16 // limit
}

// sregs is struct kvm_sregs.
type sregs struct {
	cs     segment
	_      [7]segment
	tables [2]table
	cr0    uint64
	_      [6]uint64 // other control registers, apic_base
	_      [4]uint64 // interrupt_bitmap
}

// runPage is the beginning of struct kvm_run, which a vCPU shares with the program: up to the
// union, and of that the part of KVM_EXIT_IO.
type runPage struct {
	_             uint8 // request_interrupt_window
	immediateExit uint8
	_             [6]uint8
	exitReason    uint32
	_             [4]uint8  // what else the CPU's state is
	_             [2]uint64 // cr8, apic_base

	// From here on the union. io.direction is also the first byte of the other members.
	direction, size uint8
	port            uint16
	count           uint32
	dataOffset      uint64
}

// detail is the first 64 bits of the union: hardware_entry_failure_reason, or suberror in its lower
// half.
func (p *runPage) detail() uint64 { return *(*uint64)(unsafe.Pointer(&p.direction)) }

// ioctl calls ioctl(2) with a number as its argument.
func ioctl(fd int, request, arg uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// pass calls ioctl(2) with a struct as its argument.
func pass[T any](fd int, request uintptr, what string, arg *T) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return os.NewSyscallError(what, errno)
	}
	return nil
}

// fd is a descriptor that an ioctl has made. The kernel sets O_CLOEXEC.
type fd int

// newFD repeats what a signal has interrupted: making a VM takes locks that a pending signal, of
// Go's own runtime for example, makes the kernel give up.
func newFD(from int, request, arg uintptr) (fd, error) {
	for {
		n, err := ioctl(from, request, arg)
		if !errors.Is(err, unix.EINTR) {
			return fd(n), err
		}
	}
}

func (f fd) close() { unix.Close(int(f)) }
