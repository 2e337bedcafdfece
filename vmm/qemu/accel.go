package qemu

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"

	"banger/vmm"

	"golang.org/x/sys/unix"
)

const kvmDevice = "/dev/kvm"

// chooseAccel returns what runs the CPUs, and the reason.
func chooseAccel(wish string) (accel, why string, err error) {
	switch wish {
	case kvm, tcg:
		return wish, "configured", nil
	case "", "auto":
	default:
		return "", "", fmt.Errorf("accel is auto, kvm or tcg, not %q: %w", wish, vmm.ErrInvalid)
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return tcg, "the processor's flags cannot be read", nil
	}
	// The device may open, and make a VM, where the processor cannot run a guest.
	if !virtualises(info) {
		return tcg, "the processor shows neither svm nor vmx", nil
	}
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if err != nil {
		return tcg, err.Error(), nil
	}
	f.Close()
	return kvm, kvmDevice + " opens", nil
}

// virtualises reports whether /proc/cpuinfo's flags have svm or vmx.
func virtualises(cpuinfo []byte) bool {
	lines := bufio.NewScanner(bytes.NewReader(cpuinfo))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(key) != "flags" {
			continue
		}
		for _, f := range strings.Fields(value) {
			if f == "svm" || f == "vmx" {
				return true
			}
		}
	}
	return false
}

// Requests of linux/kvm.h, without arguments.
const (
	kvmCreateVM   = 0xae01
	kvmCreateVCPU = 0xae41
	kvmGetTSCKHz  = 0xaea3
)

// hostTSC returns the host's TSC frequency in kHz, 0 if it is unknown. KVM reports the kernel's
// calibration, also where its guests cannot run. Otherwise the counter is measured against
// CLOCK_MONOTONIC_RAW. The "cpu MHz" of /proc/cpuinfo is of no use: it follows the core's present
// speed.
func hostTSC() uint64 {
	if khz := kvmTSC(); khz != 0 {
		return khz
	}
	return measureTSC()
}

// tscInStep reports whether the host's kernel trusts the TSCs of its CPUs to agree.
func tscInStep() bool {
	text, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/available_clocksource")
	return err == nil && slices.Contains(strings.Fields(string(text)), "tsc")
}

func kvmTSC() uint64 {
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	machine, err := ioctl(int(f.Fd()), kvmCreateVM)
	if err != nil {
		return 0
	}
	defer unix.Close(machine)
	cpu, err := ioctl(machine, kvmCreateVCPU)
	if err != nil {
		return 0
	}
	defer unix.Close(cpu)
	khz, err := ioctl(cpu, kvmGetTSCKHz)
	if err != nil || khz <= 0 {
		return 0
	}
	return uint64(khz)
}

func ioctl(fd int, request uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}
