package doctor

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"syscall"

	"banger/internal/kvm"
	"banger/internal/qemus"
)

// Accelerators of QEMU, which are values of the setting accel.
const (
	accelKVM = "kvm"
	accelTCG = "tcg"
)

// kvm runs a guest of ten instructions. Without KVM guests run under TCG, about ten times slower,
// unless the daemon was told to use KVM.
func (h *Host) kvm(ctx context.Context) finding {
	flag := kvm.Flag([]byte(h.read("/proc/cpuinfo")))
	err := h.KVM(ctx, h.Root)
	if err == nil {
		return ok("/dev/kvm runs a guest of ten instructions, with %s", flag)
	}
	remedy := ""
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return warn("banger doctor", "KVM made no guest within %v; try again when the host is less busy",
			heavyLimit)
	case errors.Is(err, kvm.ErrNoFlag):
		remedy = "switch on VT-x or AMD-V in the firmware or, in a VM, nested virtualisation on its host"
	case errors.Is(err, fs.ErrNotExist):
		module := map[string]string{"svm": "kvm_amd", "vmx": "kvm_intel"}[flag]
		remedy = h.asRoot("modprobe " + module)
	case errors.Is(err, fs.ErrPermission):
		remedy = h.joinGroup("kvm")
	case errors.Is(err, syscall.EBUSY):
		remedy = "end the VMs of the other hypervisor, or " + h.asRoot("rmmod vboxdrv")
	default:
		remedy = h.configure(`accel = "tcg"`)
	}
	if h.setting("accel", "") == accelKVM {
		return fail(remedy, "the daemon is to use KVM, but %v", err)
	}
	return warn(remedy, "%v: guests run under TCG, about ten times slower", err)
}

// joinGroup returns the command that makes this user a member of a group.
func (h *Host) joinGroup(group string) string {
	return h.asRoot("usermod -aG " + group + " " + h.User + ", and log in again")
}

// qemu starts QEMU as the daemon does, without a guest.
func (h *Host) qemu(ctx context.Context) finding {
	name := h.setting("qemu", qemus.Program)
	program := h.Find(name)
	if program == "" {
		return fail(h.install("qemu"), "no %s", name)
	}
	accel := h.setting("accel", accelTCG)
	version, err := qemus.Try(ctx, program, "microvm", accel)
	if err == nil {
		return ok("%s %s, with the machine microvm and the accelerator %s", program, version, accel)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return warn(program+" --version", "%s did not start within %v", program, heavyLimit)
	}
	old, errOld := qemus.Try(ctx, program, "q35", accel)
	switch {
	case errOld == nil:
		return warn(h.install("qemu"), "%s %s has no machine microvm: guests boot on q35, more slowly",
			program, old)
	case accel == accelTCG && h.KVM(ctx, h.Root) == nil:
		return warn(h.install("qemu"), "%s runs guests under KVM only: %v", program, err)
	}
	return fail(h.install("qemu"), "%s does not start: %v", program, err)
}

func (h *Host) qemuImg(context.Context) finding { return h.needs("qemu-img", "qemu-img") }

func (h *Host) mke2fs(context.Context) finding { return h.needs("mke2fs", "e2fsprogs") }

// needs finds a program that banger needs.
func (h *Host) needs(program, name string) finding {
	if path := h.Find(program); path != "" {
		return ok("%s", path)
	}
	return fail(h.install(name), "no %s", program)
}

// vsock looks for the shorter way to the agents. Without it virtio-serial serves.
func (h *Host) vsock(context.Context) finding {
	const device = "/dev/vhost-vsock"
	err := h.Open(h.path(device))
	switch {
	case err == nil:
		return ok("%s opens", device)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV):
		return warn(h.asRoot("modprobe vhost_vsock"), "no %s: guests' agents answer over virtio-serial",
			device)
	case errors.Is(err, fs.ErrPermission):
		return warn(h.joinGroup("kvm"), "%s is not this user's: guests' agents answer over virtio-serial",
			device)
	}
	return warn(h.asRoot("modprobe vhost_vsock"), "%s: %v", device, reason(err))
}

// reason returns the error without the path, which the sentence has already.
func reason(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

// landlock looks for what confines QEMUs beside namespaces and modes.
func (h *Host) landlock(context.Context) finding {
	version, err := h.Landlock()
	if err == nil {
		return ok("Landlock %d confines QEMU", version)
	}
	return warn("add landlock to lsm= of the kernel's command line, or boot Linux 5.13 or later",
		"QEMU is not confined by Landlock: %v", err)
}

// seccomp looks for what QEMU's sandbox needs: proc(5), the line Seccomp of status.
func (h *Host) seccomp(context.Context) finding {
	if fields(h.read("/proc/self/status"), "Seccomp:") == nil {
		return fail("boot a kernel with CONFIG_SECCOMP_FILTER", "the kernel has no seccomp filters, "+
			"without which no QEMU starts")
	}
	actions := h.read("/proc/sys/kernel/seccomp/actions_avail")
	if actions != "" && !strings.Contains(actions, "kill") {
		return fail("boot a kernel with CONFIG_SECCOMP_FILTER",
			"the kernel's seccomp filters kill no process")
	}
	return ok("the kernel has seccomp filters")
}
