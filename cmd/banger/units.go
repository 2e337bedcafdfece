package main

import (
	"fmt"
	"strconv"
	"time"
)

func floatText(v *float64) string {
	if v == nil {
		return "-"
	}
	return strconv.FormatFloat(*v, 'f', 1, 64)
}

func sizeText(v *int64) string {
	if v == nil {
		return "-"
	}
	return bytesText(*v)
}

// bytesText returns at most four digits and a unit, a power of 1024.
func bytesText(n int64) string {
	const units = "BKMGT"
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v /= 1024
		i++
	}
	digits := 0
	if i > 0 && v < 10 {
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + units[i:i+1]
}

func uptimeText(seconds *float64) string {
	if seconds == nil {
		return "-"
	}
	return ageText(time.Duration(*seconds * float64(time.Second)))
}

// ageText returns a time in its two largest units. It is never negative: clocks are set.
func ageText(d time.Duration) string {
	switch d = max(0, d); {
	case d >= 24*time.Hour:
		return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// unixTime returns the time that a file of the tree gives in seconds, the zero time for no number.
func unixTime(seconds string) time.Time {
	s, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(int64(s * 1000))
}

// unitText returns bytes of a file of the tree with a unit, and other text as it is.
func unitText(text string) string {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return text
	}
	return bytesText(n)
}

// or returns the value behind v, or fallback if v is nil.
func or[T any](v *T, fallback T) T {
	if v == nil {
		return fallback
	}
	return *v
}
