package value

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestParseBytes(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "007": 7, "1K": 1 << 10, "128M": 128 << 20, "3G": 3 << 30, "2T": 2 << 40, "9223372036854775807": math.MaxInt64, "8388607T": 8388607 << 40,
	} {
		if n, err := ParseBytes(s); err != nil || n != want {
			t.Errorf("ParseBytes(%q) = %d, %v, want %d", s, n, err, want)
		}
	}
	for _, s := range []string{"", "K", "-1", "+1", "1k", "1KB", "1 K", "1.5G", "1e3", "0x10", "1_000", "9223372036854775808", "8388608T", "１", "1MM", "max"} {
		if n, err := ParseBytes(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseBytes(%q) = %d, %v, want it refused", s, n, err)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"0": 0, "90": 90 * time.Second, "90s": 90 * time.Second, "15m": 15 * time.Minute, "1.5": 1500 * time.Millisecond, "0.29": 290 * time.Millisecond,
		"1h30m": 90 * time.Minute, "250ms": 250 * time.Millisecond, ".5": 500 * time.Millisecond, "max": NoLimit,
	} {
		if d, err := ParseDuration(s); err != nil || d != want {
			t.Errorf("ParseDuration(%q) = %v, %v, want %v", s, d, err, want)
		}
	}
	for _, s := range []string{"", ".", "-1", "-1s", "1e3", "1.2.3", "NaN", "Inf", "1d", "s", "MAX", "99999999999", "2562047h", "9223372036854775807ns"} {
		if d, err := ParseDuration(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseDuration(%q) = %v, %v, want it refused", s, d, err)
		}
	}
}

func TestParseTime(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "1790000000.123": 1790000000123, "1790000000": 1790000000000, "1.0006": 1001, "99999999999": 99999999999000} {
		if at, err := ParseTime(s); err != nil || at.UnixMilli() != want {
			t.Errorf("ParseTime(%q) = %v, %v, want %d ms", s, at, err, want)
		}
	}
	for _, s := range []string{"", ".", "-1", "1e9", "NaN", "Inf", "100000000001", "1 2", "now"} {
		if at, err := ParseTime(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseTime(%q) = %v, %v, want it refused", s, at, err)
		}
	}
}

// refused reports whether err is set, and fails the test unless it is of bad input.
func refused(t *testing.T, s string, err error) bool {
	t.Helper()
	if err != nil && !errors.Is(err, ErrInvalid) {
		t.Fatalf("%q is refused as no bad input: %v", s, err)
	}
	return err != nil
}

func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"0", "128M", "8388607T", "8388608T", "1 K", "-1", "+1", "１K"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseBytes(s)
		if refused(t, s, err) {
			return
		}
		if n < 0 || strings.Trim(s, "0123456789KMGT") != "" {
			t.Errorf("%q is taken for %d", s, n)
		}
		if again, err := ParseBytes(strconv.FormatInt(n, 10)); err != nil || again != n {
			t.Errorf("%q is shown as %d, which is taken for %d, %v", s, n, again, err)
		}
	})
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"0", "90", "1.5", "0.29", "15m", "2562047h", "4611686018.427387904", "max", "1ns", "9999999.999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if refused(t, s, err) {
			return
		}
		if d < 0 && d != NoLimit {
			t.Errorf("%q is taken for %d", s, d)
		}
		shown := FormatDuration(d)
		again, err := ParseDuration(shown)
		if err != nil || FormatDuration(again) != shown {
			t.Errorf("%q is shown as %s, which is taken for %d, %v", s, shown, again, err)
		}
		if d < 1<<50 && again != d {
			t.Errorf("%q is %d, and what it is shown as, %s, is %d", s, d, shown, again)
		}
	})
}

func FuzzParseTime(f *testing.F) {
	for _, s := range []string{"0", "1790000000.123", "99999999999.9999", ".5", "1e9", "0.0004"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		at, err := ParseTime(s)
		if refused(t, s, err) {
			return
		}
		again, err := ParseTime(FormatTime(at))
		if err != nil || !again.Equal(at) {
			t.Errorf("%q is shown as %s, which is taken for %v, %v", s, FormatTime(at), again, err)
		}
	})
}

func FuzzParseBool(f *testing.F) {
	for _, s := range []string{"0", "1", "", "true", "01", "２"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if b, err := ParseBool(s); !refused(t, s, err) && FormatBool(b) != s {
			t.Errorf("%q is shown as %s", s, FormatBool(b))
		}
	})
}
