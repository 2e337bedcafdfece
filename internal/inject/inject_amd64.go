// Package inject makes a living process execute system calls, for tests of what a program that was
// taken over can do. It works as a debugger does (ptrace(2)), and needs the rights of one.
package inject

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrKilled is the error of a call for which the kernel ended the process.
var ErrKilled = errors.New("the call ended the process")

// Process is a stopped process. Its methods belong to the goroutine that called Attach.
type Process struct {
	pid     int
	mem     *os.File
	saved   unix.PtraceRegs
	call    uint64 // address of a system call's instruction
	scratch uint64 // address of memory for arguments
	used    int
}

const scratchSize = 1 << 16

// Attach stops a process. The caller calls Detach, on the same goroutine, which stays on its thread
// until then.
func Attach(pid int) (*Process, error) {
	runtime.LockOSThread()
	p := &Process{pid: pid}
	if err := p.stop(); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("cannot attach to process %d: %w", pid, err)
	}
	return p, nil
}

func (p *Process) stop() (err error) {
	if p.mem, err = os.OpenFile(p.file("mem"), os.O_RDWR, 0); err != nil {
		return err
	}
	if p.call, err = p.findCall(); err != nil {
		return err
	}
	if err := unix.PtraceAttach(p.pid); err != nil {
		return err
	}
	if err := p.wait(); err != nil {
		return err
	}
	if err := unix.PtraceGetRegs(p.pid, &p.saved); err != nil {
		return err
	}
	p.scratch, err = p.Call(unix.SYS_MMAP, 0, scratchSize, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0)
	return err
}

func (p *Process) file(name string) string { return fmt.Sprintf("/proc/%d/%s", p.pid, name) }

// findCall returns the address of a system call's instruction in the vDSO, which each process has.
func (p *Process) findCall() (uint64, error) {
	maps, err := os.ReadFile(p.file("maps"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if !strings.HasSuffix(line, "[vdso]\n") {
			continue
		}
		from, rest, _ := strings.Cut(line, "-")
		to, _, _ := strings.Cut(rest, " ")
		begin, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			return 0, err
		}
		code := make([]byte, end-begin)
		if _, err := p.mem.ReadAt(code, int64(begin)); err != nil {
			return 0, err
		}
		if i := bytes.Index(code, []byte{0x0f, 0x05}); i >= 0 {
			return begin + uint64(i), nil
		}
	}
	return 0, errors.New("no system call in its vDSO")
}

// wait returns when the process is stopped. It polls: another goroutine may reap the process, if it
// is this program's child.
func (p *Process) wait() error {
	for ; ; time.Sleep(time.Millisecond) {
		var ws unix.WaitStatus
		n, err := unix.Wait4(p.pid, &ws, unix.WALL|unix.WNOHANG, nil)
		switch {
		case err == unix.ECHILD, n == p.pid && !ws.Stopped():
			return ErrKilled
		case err != nil && err != unix.EINTR:
			return err
		case n == p.pid:
			return nil
		}
		if stat, err := os.ReadFile(p.file("stat")); err != nil || bytes.Contains(stat, []byte(") Z")) {
			return ErrKilled
		}
	}
}

// Call makes the process execute a system call. An argument is an int, a uint64, a string or bytes;
// of the last two it gets the address. First reads what the call wrote to its first bytes.
func (p *Process) Call(number int, args ...any) (uint64, error) {
	p.used = 0
	values := [6]uint64{}
	for i, a := range args {
		switch a := a.(type) {
		case int:
			values[i] = uint64(a)
		case uint64:
			values[i] = a
		case string:
			values[i] = p.put(append([]byte(a), 0))
		case []byte:
			values[i] = p.put(a)
		default:
			return 0, fmt.Errorf("an argument of type %T", a)
		}
	}
	regs := p.saved
	regs.Rip, regs.Rax, regs.Orig_rax = p.call, uint64(number), ^uint64(0)
	regs.Rdi, regs.Rsi, regs.Rdx = values[0], values[1], values[2]
	regs.R10, regs.R8, regs.R9 = values[3], values[4], values[5]
	if err := unix.PtraceSetRegs(p.pid, &regs); err != nil {
		return 0, err
	}
	if err := unix.PtraceSingleStep(p.pid); err != nil {
		return 0, err
	}
	if err := p.wait(); err != nil {
		return 0, err
	}
	if err := unix.PtraceGetRegs(p.pid, &regs); err != nil {
		return 0, err
	}
	if result := int64(regs.Rax); result < 0 && result > -4096 {
		return 0, unix.Errno(-result)
	}
	return regs.Rax, nil
}

// put copies an argument into the process and returns its address.
func (p *Process) put(b []byte) uint64 {
	at := p.scratch + uint64(p.used)
	p.used += (len(b) + 15) &^ 15
	if p.used > scratchSize {
		panic("inject: too many arguments")
	}
	if _, err := p.mem.WriteAt(b, int64(at)); err != nil {
		return 0 // EFAULT is the call's answer then
	}
	return at
}

// First reads what a call has written to its first buffer.
func (p *Process) First(b []byte) error {
	_, err := p.mem.ReadAt(b, int64(p.scratch))
	return err
}

// Detach lets the process continue where it was stopped.
func (p *Process) Detach() error {
	defer runtime.UnlockOSThread()
	defer p.mem.Close()
	_, err := p.Call(unix.SYS_MUNMAP, p.scratch, scratchSize)
	if errors.Is(err, ErrKilled) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return errors.Join(err, unix.PtraceSetRegs(p.pid, &p.saved), unix.PtraceDetach(p.pid))
}
