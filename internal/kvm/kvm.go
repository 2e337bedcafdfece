// Package kvm finds out whether this host's KVM can run guests (Documentation/virt/kvm/api.rst of
// Linux). The daemon chooses by it what runs its guests, and `banger doctor` shows the reason. It
// is a leaf and keeps nothing open.
package kvm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Device is the node by which programs use KVM.
const Device = "/dev/kvm"

// Why a host's KVM runs no guests. Check returns one of them, or what the kernel says, in an error
// with more words.
var (
	ErrNoFlag = errors.New("the processor shows neither svm nor vmx")
	ErrBroken = errors.New("KVM does not run a guest as it should")
	ErrHangs  = errors.New("KVM begins to run a guest and does not return")
)

// Check returns nil if KVM runs guests here. Some hosts have a device that opens and makes a VM,
// whose guests hang all the same. So the processor must show that it can run guests, and a guest of
// ten instructions must run (Try). Check blocks until ctx ends at most, and a moment longer.
// root is the directory of /proc and /dev, usually "/".
func Check(ctx context.Context, root string) error {
	info, err := os.ReadFile(filepath.Join(root, "proc/cpuinfo"))
	if err != nil {
		return fmt.Errorf("the processor's flags cannot be read: %w", err)
	}
	if Flag(info) == "" {
		return ErrNoFlag
	}
	return Try(ctx, filepath.Join(root, Device))
}

// Flag returns the flag of /proc/cpuinfo, svm or vmx, with which a processor shows that it can run
// guests; empty without one.
func Flag(cpuinfo []byte) string {
	lines := bufio.NewScanner(bytes.NewReader(cpuinfo))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(key) != "flags" {
			continue
		}
		for _, f := range strings.Fields(value) {
			if f == "svm" || f == "vmx" {
				return f
			}
		}
	}
	return ""
}

// TSC returns the frequency of the host's time stamp counter in kHz, as the kernel calibrated it; 0
// if KVM cannot be used. It works also where guests cannot run.
func TSC() uint64 {
	f, err := os.OpenFile(Device, os.O_RDWR, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	machine, err := newFD(int(f.Fd()), createVM, 0)
	if err != nil {
		return 0
	}
	defer machine.close()
	cpu, err := newFD(int(machine), createVCPU, 0)
	if err != nil {
		return 0
	}
	defer cpu.close()
	khz, err := ioctl(int(cpu), getTSCKHz, 0)
	if err != nil || khz <= 0 {
		return 0
	}
	return uint64(khz)
}
