package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
)

// headLines is how many lines of the screen are above the rows.
const headLines = 2

// roomy is the least height of a screen with empty lines between its parts.
const roomy = 16

// sparkWidth is how many samples of CPU a bar shows, one each second.
const sparkWidth = 10

// View implements tea.Model.
func (m *top) View() tea.View {
	v := tea.NewView(m.screen())
	v.AltScreen = true
	return v
}

// footLines returns how many lines are below the rows: a small screen has no room for all keys.
func (m *top) footLines() int {
	if m.height < roomy {
		return 1
	}
	return 2
}

// screen returns height lines of at most width cells, so that nothing scrolls or wraps.
func (m *top) screen() string {
	var body []string
	switch {
	case m.helping:
		body = m.helpLines()
	case m.detail != nil:
		body = m.detailLines()
	default:
		body = m.listLines()
	}
	foot := m.foot()
	foot = foot[:min(len(foot), m.height)]
	room := max(0, m.height-len(foot))
	for len(body) < room {
		body = append(body, "")
	}
	return strings.Join(append(body[:room:room], foot...), "\n")
}

// line returns a line of the screen with an attribute.
func (m *top) line(attribute, text string) string {
	return attribute + fit(text, m.width) + plain
}

// foot returns the last lines: what an action says or asks takes the place of the keys.
func (m *top) foot() []string {
	line := m.line(faint, m.viewKeys())
	switch {
	case m.asked != nil:
		line = m.line(inverse, m.asked.text)
	case m.said.bad:
		line = m.line(inverse, "error: "+m.said.text)
	case m.said.text != "":
		line = m.line(bold, m.said.text)
	}
	if m.footLines() == 1 {
		return []string{line}
	}
	return []string{m.line(faint, strings.Join(m.actionKeys(), "  ")), line}
}

// viewKeys returns the keys that change what is shown.
func (m *top) viewKeys() string {
	switch {
	case m.typing:
		return "filter: " + m.filter + "_   Enter keeps it, Esc clears it"
	case m.helping:
		return "any key goes back"
	case m.detail != nil:
		return "q quit  Esc back  ? keys"
	}
	return "q quit  ? keys  ↑↓ select  Enter one VM  s sort  r reverse  / filter"
}

// actionKeys returns the keys that act on the selected VM.
func (m *top) actionKeys() []string {
	name := m.selected
	if m.detail != nil {
		name = m.detail.name
	}
	var keys []string
	for _, a := range actions {
		word := a.word
		if word == "pause" {
			word = m.pauseWord(name)
		}
		keys = append(keys, a.key+" "+word)
	}
	return keys
}

// helpLines returns all keys.
func (m *top) helpLines() []string {
	out := []string{m.line(bold, "keys of banger top"), ""}
	out = append(out, m.flow([]string{"↑ k up", "↓ j down", "PgUp page up", "PgDn Space page down",
		"Home g first", "End G last", "Enter one VM", "Esc back, all VMs", "s sort", "r reverse",
		"/ filter by name or state", "? keys", "q Ctrl-C quit"})...)
	out = append(out, "", m.line(faint, "On the selected VM; some ask first:"))
	return append(out, m.flow(m.actionKeys())...)
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
	head := look{}.rowText(names, "NAME", "STATE", "HEALTH", "CPU%", "", "MEMORY", "UPTIME", "ADDRESS")
	out := []string{m.line(bold, title), m.line(faint, head)}
	if len(m.rows) == 0 {
		return append(out, fit(m.nothing(), m.width))
	}
	for _, r := range m.visible() {
		colours := m.look
		if r.Name == m.selected {
			colours = look{} // the line is reversed
		}
		line := colours.rowText(names, r.Name, r.State, or(r.Health, "-"), floatText(r.CPU),
			spark(m.history[r.Name]), sizeText(r.RSS), uptimeText(r.Uptime), or(r.Address, "-"))
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

func (l look) rowText(nameWidth int,
	name, state, health, cpu, spark, rss, uptime, address string) string {
	return fmt.Sprintf("%s %s %s %6s %s %7s %8s %s", pad(shorten(name, nameWidth), nameWidth),
		l.paint(pad(state, 8)), l.paint(pad(health, 9)), cpu, pad(spark, sparkWidth), rss, uptime,
		address)
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

// detailLines returns a VM's facts, its first ports and, in the room below, its last events.
func (m *top) detailLines() []string {
	d := m.detail
	title := "banger: " + d.name
	if r := m.row(d.name); r != nil && r.CPU != nil {
		title += fmt.Sprintf(", cpu %.1f%% %s memory %s, up %s", *r.CPU,
			pad(spark(m.history[d.name]), sparkWidth), sizeText(r.RSS), uptimeText(r.Uptime))
	}
	out := []string{m.line(bold, title)}
	switch {
	case d.err != "":
		out = append(out, m.line(inverse, d.err))
	case m.err != "":
		out = append(out, m.line(inverse, m.err))
	}
	out = append(out, m.flow(m.facts())...)
	if d.failed != "" {
		out = append(out, fit(m.look.paint("error "+d.failed), m.width))
	}
	var gap []string
	if m.height >= roomy {
		gap = []string{""}
	}
	heads := 2 * (1 + len(gap))
	ports := firstOf(orReading(d.ports), max(2, (m.height-m.footLines()-len(out)-heads)/2))
	events := orReading(m.events())
	out = append(append(out, gap...), m.line(faint, "PORTS"))
	out = append(out, m.fitAll(ports)...)
	out = append(append(out, gap...), m.line(faint, "EVENTS"))
	room := max(1, m.height-m.footLines()-len(out))
	return append(out, m.fitAll(events[max(0, len(events)-room):])...)
}

// facts returns a VM's settings and states as short texts.
func (m *top) facts() []string {
	var all []string
	for _, f := range m.detail.facts {
		name, value, _ := strings.Cut(f, " ")
		switch name {
		case "state":
			value = m.look.paint(value)
		case "memory":
			value = unitText(value)
		}
		all = append(all, name+" "+value)
		if name == "state" && m.detail.health != "" {
			all = append(all, "health "+m.look.paint(m.detail.health))
		}
	}
	return all
}

// events returns a VM's events with their age, and the time of day or the day.
func (m *top) events() []string {
	if m.detail.events == nil {
		return nil
	}
	now, all := time.Now(), []string{}
	for _, line := range m.detail.events {
		if e, ok := parseEvent(line); ok {
			age, at := now.Sub(e.at), e.at.Format(time.TimeOnly)
			if age >= 24*time.Hour {
				at = e.at.Format(time.DateOnly)
			}
			line = fmt.Sprintf("%-10s %10s  %s", at, ageText(age)+" ago", m.look.happened(e))
		}
		all = append(all, line)
	}
	return all
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
