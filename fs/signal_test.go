package fs

import (
	"bytes"
	"testing"
)

const sample = "Name:\tx\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000010002\n" +
	"SigBlk:\t0000000000010000\n"

func TestPendingSignals(t *testing.T) {
	for _, c := range []struct {
		status string
		want   uint64
		ok     bool
	}{
		{sample, 2, true},
		{"SigPnd:\t0000000000010000\nShdPnd:\t0\nSigBlk:\t0\n", 1 << 16, true},
		{"SigPnd:\tx\n", 0, false},
		{"", 0, false},
	} {
		if got, ok := pendingSignals([]byte(c.status)); got != c.want || ok != c.ok {
			t.Errorf("pendingSignals(%q) = %x, %v, want %x, %v", c.status, got, ok, c.want, c.ok)
		}
	}
}

func FuzzPendingSignals(f *testing.F) {
	f.Add([]byte(sample))
	f.Fuzz(func(t *testing.T, status []byte) {
		got, ok := pendingSignals(status)
		for _, key := range []string{"SigPnd:", "ShdPnd:", "SigBlk:"} {
			if ok && !bytes.Contains(status, []byte(key)) {
				t.Errorf("%x is returned without %s", got, key)
			}
		}
	})
}
