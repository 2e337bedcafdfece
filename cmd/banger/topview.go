package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
)

// Lines of the screen above and below the rows.
const (
	headLines = 2
	footLines = 1
)

// roomy is the least height of a screen with empty lines between its parts.
const roomy = 16

// sparkWidth is how many samples of CPU a bar shows, one each second.
const sparkWidth = 10

// Attributes of text. Every terminal has them, and NO_COLOR, being about colours, allows them.
const (
	bold    = "\x1b[1m"
	faint   = "\x1b[2m"
	inverse = "\x1b[7m"
	plain   = "\x1b[0m"
)

// View implements tea.Model.
func (m *top) View() tea.View {
	v := tea.NewView(m.screen())
	v.AltScreen = true
	return v
}

// screen returns height lines of at most width cells, so that nothing scrolls or wraps.
func (m *top) screen() string {
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
	return strings.Join(body[:room], "\n") + "\n" + m.line(faint, m.keys())
}

// line returns a line of the screen with an attribute.
func (m *top) line(attribute, text string) string {
	return attribute + fit(text, m.width) + plain
}

func (m *top) keys() string {
	switch {
	case m.typing:
		return "filter: " + m.filter + "_   Enter keeps it, Esc clears it"
	case m.detail != nil:
		return "q quit  Esc back"
	}
	return "q quit  ↑↓ select  Enter one VM  s sort  r reverse  / filter  PgUp PgDn pages"
}

// fit cuts a text to a width in cells. A wide character needs two.
func fit(s string, width int) string { return ansi.Truncate(s, max(0, width), "") }

// pad cuts or fills a text with spaces to a width in cells.
func pad(s string, width int) string {
	s = fit(s, width)
	return s + strings.Repeat(" ", max(0, width-ansi.StringWidth(s)))
}

// shorten cuts the middle out of a name: the names of a fleet differ at their ends.
func shorten(name string, width int) string {
	const tail = 5
	if len(name) <= width {
		return name
	}
	return name[:width-1-tail] + "…" + name[len(name)-tail:]
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
	title := fmt.Sprintf("banger: %d VMs, %d running, cpu %.1f%%, memory %s, by %s",
		len(m.all), running, cpu, bytesText(rss), orders[m.order].name)
	if m.filter != "" && !m.typing {
		title += ", only " + m.filter
	}
	if m.err != "" {
		title = m.err
	}
	names := m.nameWidth()
	head := rowText(names, "NAME", "STATE", "HEALTH", "CPU%", "", "MEMORY", "UPTIME", "ADDRESS")
	out := []string{m.line(bold, title), m.line(faint, head)}
	if len(m.rows) == 0 {
		return append(out, fit(m.nothing(), m.width))
	}
	for _, r := range m.visible() {
		line := rowText(names, r.Name, r.State, or(r.Health, "-"), floatText(r.CPU),
			spark(m.history[r.Name]), rssText(r.RSS), uptimeText(r.Uptime), or(r.Address, "-"))
		if r.Name == m.selected {
			line = m.line(inverse, pad(line, m.width))
		}
		out = append(out, fit(line, m.width))
	}
	return out
}

// nothing returns why there are no rows.
func (m *top) nothing() string {
	switch {
	case m.all == nil && m.err == "":
		return "reading ..."
	case len(m.all) > 0:
		return "No VM with " + m.filter + " in its name or state; Esc shows all."
	case m.all != nil:
		return "No VMs yet; `banger run web` makes and starts one."
	}
	return ""
}

// nameWidth returns the width of the column of names: that of the longest name on any page, as far
// as there is room beside the other columns.
func (m *top) nameWidth() int {
	const least, others = 8, 55
	width, address := len("NAME"), len("ADDRESS")
	for _, r := range m.all {
		width, address = max(width, len(r.Name)), max(address, len(or(r.Address, "-")))
	}
	return min(width, max(least, m.width-others-address))
}

func rowText(nameWidth int, name, state, health, cpu, spark, rss, uptime, address string) string {
	return fmt.Sprintf("%s %-8s %s %6s %s %7s %8s %s", pad(shorten(name, nameWidth), nameWidth),
		state, pad(health, 9), cpu, pad(spark, sparkWidth), rss, uptime, address)
}

// spark draws CPU percent over time. A full block stands for 100 or a higher maximum.
func spark(history []float64) string {
	blocks := []rune("▁▂▃▄▅▆▇█")
	full := slices.Max(append([]float64{100}, history...))
	var b strings.Builder
	for _, v := range history {
		i := int(v / full * float64(len(blocks)))
		b.WriteRune(blocks[max(0, min(i, len(blocks)-1))])
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
	d := time.Duration(*seconds) * time.Second
	switch {
	case d >= 24*time.Hour:
		return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
}

// detailLines returns a VM's facts, its first ports and, in the room below, its last events.
func (m *top) detailLines() []string {
	d := m.detail
	title := "banger: " + d.name
	if r := m.row(d.name); r != nil && r.CPU != nil {
		title += fmt.Sprintf(", cpu %.1f%% %s memory %s, up %s", *r.CPU,
			pad(spark(m.history[d.name]), sparkWidth), rssText(r.RSS), uptimeText(r.Uptime))
	}
	out := []string{m.line(bold, title)}
	switch {
	case d.err != "":
		out = append(out, m.line(inverse, d.err))
	case m.err != "":
		out = append(out, m.line(inverse, m.err))
	}
	facts := slices.Clone(d.facts)
	if len(facts) > 0 && d.health != "" { // beside the state
		facts = slices.Insert(facts, 1, "health "+d.health)
	}
	out = append(out, m.flow(facts)...)
	if d.failed != "" {
		out = append(out, fit("error "+d.failed, m.width))
	}
	var gap []string
	if m.height >= roomy {
		gap = []string{""}
	}
	heads := 2 * (1 + len(gap))
	ports := firstOf(orReading(d.ports), max(2, (m.height-footLines-len(out)-heads)/2))
	events := orReading(d.events)
	out = append(append(out, gap...), m.line(faint, "PORTS"))
	out = append(out, m.fitAll(ports)...)
	out = append(append(out, gap...), m.line(faint, "EVENTS"))
	room := max(1, m.height-footLines-len(out))
	return append(out, m.fitAll(events[max(0, len(events)-room):])...)
}

// firstOf returns the first lines. The last line counts those that have no room.
func firstOf(lines []string, room int) []string {
	if len(lines) <= room {
		return lines
	}
	shown := lines[:room-1]
	return append(slices.Clone(shown), fmt.Sprintf("... and %d more", len(lines)-len(shown)))
}

// flow joins facts to lines as far as the width allows.
func (m *top) flow(facts []string) []string {
	const gap = "   "
	var out []string
	for _, f := range facts {
		if last := len(out) - 1; last >= 0 && ansi.StringWidth(out[last]+gap+f) <= m.width {
			out[last] += gap + f
		} else {
			out = append(out, f)
		}
	}
	return m.fitAll(out)
}

func (m *top) fitAll(lines []string) []string {
	fitted := make([]string, len(lines))
	for i, l := range lines {
		fitted[i] = fit(l, m.width)
	}
	return fitted
}

func orReading(lines []string) []string {
	if lines == nil {
		return []string{"reading ..."}
	}
	return lines
}
