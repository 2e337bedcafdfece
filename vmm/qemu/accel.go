package qemu

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	hostkvm "banger/internal/kvm"
	"banger/vmm"
)

// kvmWait is how long KVM may need to run a guest of ten instructions: it takes
// milliseconds, and half a second on a host that is emulated itself.
const kvmWait = 10 * time.Second

// chooseAccel returns what runs the CPUs, and the reason.
func chooseAccel(wish string) (accel, why string, err error) {
	switch wish {
	case kvm, tcg:
		return wish, "configured", nil
	case "", "auto":
	default:
		return "", "", fmt.Errorf("accel is auto, kvm or tcg, not %q: %w", wish, vmm.ErrInvalid)
	}
	ctx, cancel := context.WithTimeout(context.Background(), kvmWait)
	defer cancel()
	if err := hostkvm.Check(ctx, "/"); err != nil {
		return tcg, err.Error(), nil
	}
	return kvm, "KVM runs guests", nil
}

// hostTSC returns the host's TSC frequency in kHz, 0 if it is unknown. KVM reports the kernel's
// calibration, also where its guests cannot run. Otherwise the counter is measured against
// CLOCK_MONOTONIC_RAW. The "cpu MHz" of /proc/cpuinfo is of no use: it follows the core's present
// speed.
func hostTSC() uint64 {
	if khz := hostkvm.TSC(); khz != 0 {
		return khz
	}
	return measureTSC()
}

// tscInStep reports whether the host's kernel trusts the TSCs of its CPUs to agree.
func tscInStep() bool {
	text, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/available_clocksource")
	return err == nil && slices.Contains(strings.Fields(string(text)), "tsc")
}
