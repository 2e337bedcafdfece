package host

import (
	"bytes"
	"strconv"
	"strings"
	"testing"
)

const statLine = "42 (a) b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2\n"

func TestStartTime(t *testing.T) {
	if start := StartTime([]byte(statLine)); start != 987654 {
		t.Errorf("got %d", start)
	}
	bad := []string{"", "42 (a", "42 (a) S 1", strings.Replace(statLine, "987654", "x", 1)}
	for _, line := range bad {
		if start := StartTime([]byte(line)); start != 0 {
			t.Errorf("%q: got %d", line, start)
		}
	}
}

func FuzzStartTime(f *testing.F) {
	f.Add([]byte(statLine))
	f.Fuzz(func(t *testing.T, b []byte) {
		start := StartTime(b)
		text := []byte(strconv.FormatUint(start, 10))
		if start != 0 && !bytes.Contains(b[bytes.LastIndexByte(b, ')')+1:], text) {
			t.Fatalf("%q: got %d", b, start)
		}
	})
}
