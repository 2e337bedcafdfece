// Package value reads and writes the values that files hold: bytes, times, flags.
package value

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// ErrInvalid is the kind of every error of a Parse function. The sentence quotes the value.
var ErrInvalid = errors.New("invalid value")

// NoLimit is the duration that is written as Max.
const NoLimit time.Duration = -1

// Max is the word for no limit.
const Max = "max"

// ParseBytes reads a count of bytes: digits and at most one of K M G T, powers of 1024.
func ParseBytes(s string) (int64, error) {
	digits, unit := s, int64(1)
	if i := strings.IndexAny(s, "KMGT"); i >= 0 && i == len(s)-1 {
		digits = s[:i]
		unit = 1 << (10 * (1 + strings.IndexByte("KMGT", s[i])))
	}
	n, err := ParseUint(digits, math.MaxInt64/unit)
	if err != nil {
		return 0, fmt.Errorf("%.64q is not a number of bytes, such as 134217728 or 128M: %w",
			s, ErrInvalid)
	}
	return n * unit, nil
}

// ParseUint reads plain digits up to most, without a sign, spaces or underscores.
func ParseUint(s string, most int64) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || int64(n) > most || s[0] == '+' {
		return 0, fmt.Errorf("%.64q is not a number from 0 to %d: %w", s, most, ErrInvalid)
	}
	return int64(n), nil
}

// maxDuration is the longest time that is not Max: 100 years of 365 days. Its nanoseconds survive
// being written as seconds.
const maxDuration = 100 * 365 * 24 * time.Hour

// ParseDuration reads seconds with a fraction, a Go duration, or Max.
func ParseDuration(s string) (time.Duration, error) {
	if s == Max {
		return NoLimit, nil
	}
	bad := fmt.Errorf("%.64q is not a time, such as 90, 1.5 or 15m, of at most 100 years: %w",
		s, ErrInvalid)
	if strings.Trim(s, "0123456789.") == "" && s != "" {
		seconds, err := strconv.ParseFloat(s, 64)
		if err != nil || seconds > maxDuration.Seconds() {
			return 0, bad
		}
		return time.Duration(math.Round(seconds * float64(time.Second))), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > maxDuration {
		return 0, bad
	}
	return d, nil
}

// FormatDuration returns seconds with as many decimals as needed, or Max.
func FormatDuration(d time.Duration) string {
	if d == NoLimit {
		return Max
	}
	return strconv.FormatFloat(d.Seconds(), 'f', -1, 64)
}

// ParseBool reads 0 or 1.
func ParseBool(s string) (bool, error) {
	switch s {
	case "0":
		return false, nil
	case "1":
		return true, nil
	}
	return false, fmt.Errorf("%.64q is not 0 or 1: %w", s, ErrInvalid)
}

// FormatBool returns 0 or 1.
func FormatBool(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// FormatTime returns Unix seconds with milliseconds, and nothing for the zero time.
func FormatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64)
}

// ParseTime reads what FormatTime writes.
func ParseTime(s string) (time.Time, error) {
	seconds, err := strconv.ParseFloat(s, 64)
	if err != nil || !(seconds >= 0 && seconds <= 1e11) || strings.Trim(s, "0123456789.") != "" {
		return time.Time{}, fmt.Errorf("%.64q is not a time in Unix seconds: %w", s, ErrInvalid)
	}
	return time.UnixMilli(int64(math.Round(seconds * 1000))), nil
}

// ListLines returns the lines of a list without the white space around them and without empty ones.
func ListLines(text string) string {
	var kept []string
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\n")
}
