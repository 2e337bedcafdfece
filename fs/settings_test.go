package fs

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"banger/vmm"
)

// refused reports whether err is set. Any error but ErrInvalid fails the test.
func refused(t *testing.T, s string, err error) bool {
	t.Helper()
	if err != nil && !errors.Is(err, vmm.ErrInvalid) {
		t.Fatalf("%q: %v, want ErrInvalid", s, err)
	}
	return err != nil
}

// FuzzConfig writes text to a VM's `config`. The text that it shows afterwards makes the same
// settings of another VM.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		"cpus 4\nmemory 192M", "image builtin\ncmdline  a  b \nnet none",
		"idle_timeout max\nstop_timeout 1.5\nprotected 1\nautostart 0",
		"cpus", "cmdline", "cpus 4 ", "nothing 1", "\n\n",
		"cmdline a\x00b\ndisk 1T\nvmm fake",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := vmm.Config{Image: "builtin", CPUs: 1, Memory: 1 << 27, VMM: "qemu",
			Net: vmm.NetBridge, IdleTimeout: vmm.NoLimit, StopTimeout: 10 * time.Second}
		if refused(t, s, applyConfig(&c, s)) {
			return
		}
		shown := flat(configPairs(&c))
		var again vmm.Config
		if err := applyConfig(&again, string(shown)); err != nil {
			t.Fatalf("%q is shown as %q, which is refused: %v", s, shown, err)
		}
		if second := flat(configPairs(&again)); string(second) != string(shown) {
			t.Errorf("%q is shown as %q, and that as %q", s, shown, second)
		}
		b, err := object(configPairs(&c))
		if err != nil || !json.Valid(b) {
			t.Errorf("%q is no JSON: %v", b, err)
		}
	})
}
