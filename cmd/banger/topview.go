package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/charmbracelet/lipgloss"
)

// Lines of the screen above and below the rows.
const (
	headLines = 2
	footLines = 1
)

// sparkWidth is how many samples of CPU are shown, one each second.
const sparkWidth = 10

var (
	bold    = lipgloss.NewStyle().Bold(true)
	inverse = lipgloss.NewStyle().Reverse(true)
	faint   = lipgloss.NewStyle().Faint(true)
)

// View implements tea.Model: exactly height lines of at most width characters, so that nothing scrolls or wraps.
func (m *top) View() string {
	var body []string
	if m.detail != nil {
		body = m.detailLines()
	} else {
		body = m.listLines()
	}
	room := max(0, m.height-footLines)
	for len(body) < room {
		body = append(body, "")
	}
	return strings.Join(body[:room], "\n") + "\n" + faint.Render(fit(m.keys(), m.width))
}

func (m *top) keys() string {
	switch {
	case m.typing:
		return "filter: " + m.filter + "_   Enter keeps it, Esc clears it"
	case m.detail != nil:
		return "Esc back  q quit"
	}
	return "↑↓ select  Enter ports and events  s sort  r reverse  / filter  q quit"
}

// fit cuts a line to the screen's width, in characters.
func fit(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:max(0, width)])
}

func (m *top) listLines() []string {
	running, cpu, rss := 0, 0.0, int64(0)
	for i := range m.all {
		if m.all[i].State == "running" {
			running++
		}
		cpu += or(m.all[i].CPU, 0)
		rss += or(m.all[i].RSS, 0)
	}
	title := fmt.Sprintf("banger: %d VMs, %d running, cpu %.1f%%, memory %s, by %s", len(m.all), running, cpu, bytesText(rss), orders[m.order].name)
	if m.filter != "" && !m.typing {
		title += ", only " + m.filter
	}
	if m.err != "" {
		title = m.err
	}
	nameWidth := m.nameWidth()
	out := []string{
		bold.Render(fit(title, m.width)),
		faint.Render(fit(row(nameWidth, "NAME", "STATE", "HEALTH", "CPU%", "", "MEMORY", "UPTIME", "ADDRESS"), m.width)),
	}
	for _, r := range m.visible() {
		line := row(nameWidth, r.Name, r.State, or(r.Health, "-"), floatText(r.CPU), spark(m.history[r.Name]), rssText(r.RSS), uptimeText(r.Uptime), or(r.Address, "-"))
		line = fit(line, m.width)
		if r.Name == m.selected {
			line = inverse.Render(line + strings.Repeat(" ", max(0, m.width-utf8.RuneCountInString(line))))
		}
		out = append(out, line)
	}
	return out
}

// nameWidth is that of the longest name on the screen, as far as there is room beside the other columns.
func (m *top) nameWidth() int {
	const others = 64
	width := 4
	for _, r := range m.visible() {
		width = max(width, len(r.Name))
	}
	return min(width, max(8, m.width-others))
}

func row(nameWidth int, name, state, health, cpu, spark, rss, uptime, address string) string {
	return fmt.Sprintf("%-*s %-8s %-9s %6s %-*s %7s %8s %s", nameWidth, fit(name, nameWidth), state, fit(health, 9), cpu, sparkWidth, spark, rss, uptime, address)
}

// spark draws CPU percent over time, a full block being 100 or the highest there is.
func spark(history []float64) string {
	const blocks = "▁▂▃▄▅▆▇█"
	all := []rune(blocks)
	most := 100.0
	for _, v := range history {
		most = max(most, v)
	}
	var b strings.Builder
	for _, v := range history {
		i := int(v / most * float64(len(all)))
		b.WriteRune(all[max(0, min(i, len(all)-1))])
	}
	return b.String()
}

func floatText(v *float64) string {
	if v == nil {
		return "-"
	}
	return strconv.FormatFloat(*v, 'f', 1, 64)
}

func rssText(v *int64) string {
	if v == nil {
		return "-"
	}
	return bytesText(*v)
}

// bytesText gives at most four digits and a unit, powers of 1024.
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
	d := time.Duration(*seconds) * time.Second
	switch {
	case d >= 24*time.Hour:
		return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
}

// detailLines gives a VM's facts, its ports and, in what room is left, its last events.
func (m *top) detailLines() []string {
	d := m.detail
	out := []string{bold.Render(fit("banger: "+d.name, m.width))}
	if !d.ready {
		return append(out, "reading ...")
	}
	for _, f := range d.facts {
		out = append(out, fit(fmt.Sprintf("%-8s %s", f[0], f[1]), m.width))
	}
	section := func(title string, lines []string, room int) {
		out = append(out, "", faint.Render(title))
		if len(lines) == 0 {
			lines = []string{"(none)"}
		}
		for _, l := range lines[max(0, len(lines)-max(1, room)):] {
			out = append(out, fit(l, m.width))
		}
	}
	section("ports", d.ports, (m.height-len(out))/2)
	section("events", d.events, m.height-footLines-len(out)-2)
	return out
}
