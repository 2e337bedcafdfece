package kvm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"
)

// TestLayout compares the structs with those of linux/kvm.h, and each request with its struct.
func TestLayout(t *testing.T) {
	var page runPage
	for _, c := range []struct {
		what      string
		got, want uintptr
	}{
		{"struct kvm_userspace_memory_region", unsafe.Sizeof(memoryRegion{}), 32},
		{"struct kvm_regs", unsafe.Sizeof(regs{}), 144},
		{"struct kvm_segment", unsafe.Sizeof(segment{}), 24},
		{"struct kvm_dtable", unsafe.Sizeof(table{}), 16},
		{"struct kvm_sregs", unsafe.Sizeof(sregs{}), 312},
		{"kvm_sregs.gdt", unsafe.Offsetof(sregs{}.tables), 192},
		{"kvm_sregs.cr0", unsafe.Offsetof(sregs{}.cr0), 224},
		{"kvm_segment.selector", unsafe.Offsetof(segment{}.selector), 12},
		{"kvm_regs.rip", unsafe.Offsetof(regs{}.rip), 128},
		{"kvm_run.immediate_exit", unsafe.Offsetof(page.immediateExit), 1},
		{"kvm_run.exit_reason", unsafe.Offsetof(page.exitReason), 8},
		{"kvm_run.io", unsafe.Offsetof(page.direction), 32},
		{"kvm_run.io.port", unsafe.Offsetof(page.port), 34},
		{"kvm_run.io.data_offset", unsafe.Offsetof(page.dataOffset), 40},
		{"size in KVM_SET_USER_MEMORY_REGION", setMemory >> 16 & 0x3fff, 32},
		{"size in KVM_SET_REGS", setRegs >> 16 & 0x3fff, 144},
		{"size in KVM_GET_SREGS", getSregs >> 16 & 0x3fff, 312},
		{"size in KVM_SET_SREGS", setSregs >> 16 & 0x3fff, 312},
	} {
		if c.got != c.want {
			t.Errorf("%s is %d, not %d", c.what, c.got, c.want)
		}
	}
}

func TestFlag(t *testing.T) {
	for text, want := range map[string]string{
		"flags\t\t: fpu vme svm lahf_lm\n":                           "svm",
		"processor\t: 0\nflags\t\t: fpu vmx\n":                       "vmx",
		"flags\t\t: fpu vmxnet svmx\n":                               "",
		"vmx flags\t: vnmi invvpid\nflags\t\t: fpu\nbugs\t\t: svm\n": "",
		"model name: svm\n":                                          "",
		"":                                                           "",
	} {
		if got := Flag([]byte(text)); got != want {
			t.Errorf("Flag(%q) = %q, not %q", text, got, want)
		}
	}
}

// TestCheck asks a host without the flag, and one whose device is missing or is none of KVM's.
func TestCheck(t *testing.T) {
	root := t.TempDir()
	put := func(name, text string) {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755),
			os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	put("proc/cpuinfo", "flags : fpu\n")
	if err := Check(t.Context(), root); !errors.Is(err, ErrNoFlag) {
		t.Errorf("without the flag: %v", err)
	}
	put("proc/cpuinfo", "flags : fpu svm\n")
	if err := Check(t.Context(), root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a device: %v", err)
	}
	put("dev/kvm", "")
	if err := Check(t.Context(), root); !errors.Is(err, ErrBroken) {
		t.Errorf("with a file as the device: %v", err)
	}
}

// TestTry runs the guest. Where the processor shows that it can, the guest must do what it should;
// elsewhere the call must return in time, whatever it says.
func TestTry(t *testing.T) {
	f, err := os.OpenFile(Device, os.O_RDWR, 0)
	if err != nil {
		t.Skipf("%v: modprobe kvm_intel or kvm_amd, as root", err)
	}
	f.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	begun := time.Now()
	err = Try(ctx, Device)
	t.Logf("%v after %v", err, time.Since(begun))
	if took := time.Since(begun); took > 12*time.Second {
		t.Errorf("Try took %v", took)
	}
	info, _ := os.ReadFile("/proc/cpuinfo")
	if Flag(info) != "" && err != nil {
		t.Errorf("the processor has %s, and the guest of ten instructions: %v", Flag(info), err)
	}
}

// TestKick gives a guest that never ends little time.
func TestKick(t *testing.T) {
	f, err := os.OpenFile(Device, os.O_RDWR, 0)
	if err != nil {
		t.Skipf("%v: modprobe kvm_intel or kvm_amd, as root", err)
	}
	f.Close()
	was := program
	program = []byte{0xeb, 0xfe} // jmp to itself
	defer func() { program = was }()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = Try(ctx, Device)
	info, _ := os.ReadFile("/proc/cpuinfo")
	if Flag(info) != "" && !errors.Is(err, ErrHangs) {
		t.Errorf("a guest without an end: %v", err)
	}
	if err == nil {
		t.Error("a guest without an end ended")
	}
}
