package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// progressPace is how often the line of a terminal is drawn; linePace, how often one is printed
// elsewhere.
const (
	progressPace = 200 * time.Millisecond
	linePace     = 5 * time.Second
)

// progress is a line of a terminal that is written again and again. It needs no escape sequences:
// those that move the cursor are for top, and for the page of status --watch.
type progress struct {
	screen *os.File
	shown  int // characters
}

// show replaces the line. It cuts what would wrap, from where no carriage return leads back.
func (p *progress) show(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if width, _, err := term.GetSize(int(p.screen.Fd())); err == nil && width > 0 {
		text = fit(text, width-1)
	}
	fmt.Fprintf(p.screen, "\r%-*s", p.shown, text)
	p.shown = utf8.RuneCountInString(text)
}

// clear removes the line, if there is one.
func (p *progress) clear() {
	if p.shown > 0 {
		fmt.Fprintf(p.screen, "\r%*s\r", p.shown, "")
		p.shown = 0
	}
}

// rateSpan is the time over which a rate is taken, so that it neither jumps nor lags.
const rateSpan = 5 * time.Second

// transferRate is the rate of what an image's file `progress` counts.
type transferRate struct {
	counts []count // of the last rateSpan, oldest first
}

type count struct {
	at    time.Time
	bytes int64
}

// line returns a text of `progress` as it is at a time: percent and, where bytes are counted,
// these, their rate and the time that is left.
func (r *transferRate) line(text string, now time.Time) string {
	facts := map[string]int64{}
	for _, l := range lines(text) {
		key, value, _ := strings.Cut(l, " ")
		facts[key], _ = strconv.ParseInt(value, 10, 64)
	}
	out := fmt.Sprintf("%d%%", facts["percent"])
	done, total := facts["bytes"], facts["total_bytes"]
	if total <= 0 {
		return out
	}
	out += ", " + bytesText(done) + " of " + bytesText(total)
	speed := r.add(count{now, done})
	if speed < 1 || done > total {
		return out
	}
	left := time.Duration(float64(total-done) / speed * float64(time.Second))
	return out + ", " + bytesText(int64(speed)) + "/s, " + ageText(left) + " left"
}

// add returns bytes per second, 0 as long as that is unknown.
func (r *transferRate) add(c count) float64 {
	if n := len(r.counts); n > 0 && c.bytes < r.counts[n-1].bytes {
		r.counts = nil // of another step
	}
	r.counts = append(r.counts, c)
	for c.at.Sub(r.counts[0].at) > rateSpan && len(r.counts) > 2 {
		r.counts = r.counts[1:]
	}
	span := c.at.Sub(r.counts[0].at)
	if span < time.Second {
		return 0
	}
	return float64(c.bytes-r.counts[0].bytes) / span.Seconds()
}
