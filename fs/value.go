package fs

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"banger/vmm"
)

// noLimit is how vmm.NoLimit is written.
const noLimit = "max"

// parseBytes reads a count of bytes: digits and at most one of K M G T, powers of 1024.
func parseBytes(s string) (int64, error) {
	digits, unit := s, int64(1)
	if i := strings.IndexAny(s, "KMGT"); i >= 0 && i == len(s)-1 {
		digits = s[:i]
		unit = 1 << (10 * (1 + strings.IndexByte("KMGT", s[i])))
	}
	n, err := parseUint(digits, math.MaxInt64/unit)
	if err != nil {
		return 0, fmt.Errorf("%.64q is not a number of bytes, such as 134217728 or 128M: %w", s, vmm.ErrInvalid)
	}
	return n * unit, nil
}

// parseUint reads plain digits up to most; no sign, no space, no underscore.
func parseUint(s string, most int64) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || int64(n) > most || s[0] == '+' {
		return 0, fmt.Errorf("%.64q is not a number from 0 to %d: %w", s, most, vmm.ErrInvalid)
	}
	return int64(n), nil
}

// maxDuration is the longest time that is not `max`: 100 years of 365 days. Its nanoseconds survive being written as seconds.
const maxDuration = 100 * 365 * 24 * time.Hour

// parseDuration reads seconds with a fraction, a Go duration, or `max`.
func parseDuration(s string) (time.Duration, error) {
	if s == noLimit {
		return vmm.NoLimit, nil
	}
	bad := fmt.Errorf("%.64q is not a time, such as 90, 1.5 or 15m, of at most 100 years: %w", s, vmm.ErrInvalid)
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

func formatDuration(d time.Duration) string {
	if d == vmm.NoLimit {
		return noLimit
	}
	return strconv.FormatFloat(d.Seconds(), 'f', -1, 64)
}

func parseBool(s string) (bool, error) {
	switch s {
	case "0":
		return false, nil
	case "1":
		return true, nil
	}
	return false, fmt.Errorf("%.64q is not 0 or 1: %w", s, vmm.ErrInvalid)
}

func formatBool(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// formatTime gives Unix seconds with milliseconds, nothing for no time.
func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64)
}

// parseTime reads what formatTime gives.
func parseTime(s string) (time.Time, error) {
	seconds, err := strconv.ParseFloat(s, 64)
	if err != nil || !(seconds >= 0 && seconds <= 1e11) || strings.Trim(s, "0123456789.") != "" {
		return time.Time{}, fmt.Errorf("%.64q is not a time in Unix seconds: %w", s, vmm.ErrInvalid)
	}
	return time.UnixMilli(int64(math.Round(seconds * 1000))), nil
}
