package main

import (
	"encoding/json"
	"path/filepath"
	"strings"

	tea "charm.land/bubbletea/v2"

	"banger/internal/printable"
)

// topRow is one VM of list.json, or of stats.json where the keys agree; nil is not known.
type topRow struct {
	Name    string   `json:"name"`
	State   string   `json:"state"`
	Health  *string  `json:"health"`
	CPU     *float64 `json:"cpu_percent"`
	RSS     *int64   `json:"rss_bytes"`
	Address *string  `json:"address"`
	Uptime  *float64 `json:"uptime"`
}

// detail is what is shown of one VM, until another is opened. Its text comes escaped from the daemon.
type detail struct {
	name string // immutable

	err    string // why the rest is old
	facts  []string
	health string
	failed string // the file error
	ports  []string
	events []string
}

// partMsg is a part of what is shown of one VM. Each is read at its own pace, so that what a guest does not answer holds up nothing else.
type partMsg struct {
	of    *detail
	fill  func()
	again func(*detail) tea.Msg
}

// detailEvents bounds the events that are shown of one VM.
const detailEvents = 100

// readList and the other reads run in goroutines of bubbletea's; they touch nothing of the model but its tree.
func (m *top) readList() tea.Msg {
	text, err := read(m.tree.top("list.json"))
	if err != nil {
		return listMsg{err: m.why("cannot list the VMs", err)}
	}
	var rows []topRow
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		return listMsg{err: err}
	}
	for i := range rows {
		for _, s := range []*string{&rows[i].Name, &rows[i].State, rows[i].Health, rows[i].Address} {
			if s != nil {
				*s = printable.Sentence(*s) // JSON is escaped for JSON only
			}
		}
	}
	return listMsg{rows: rows}
}

func (m *top) readFigures(name string) tea.Cmd {
	return func() tea.Msg {
		text, err := read(filepath.Join(m.tree.top("vms"), name, "stats.json"))
		if err != nil {
			return figuresMsg{name: name}
		}
		row := new(topRow)
		if json.Unmarshal([]byte(text), row) != nil {
			return figuresMsg{name: name}
		}
		return figuresMsg{name, row}
	}
}

// open shows a VM.
func (m *top) open(name string) tea.Cmd {
	d := &detail{name: name}
	m.detail = d
	var cmds []tea.Cmd
	for _, read := range []func(*detail) tea.Msg{m.readFacts, m.readHealth, m.readPorts} {
		cmds = append(cmds, func() tea.Msg { return read(d) })
	}
	return tea.Batch(cmds...)
}

// of reads a file of a VM.
func (m *top) of(d *detail, file string) (string, error) {
	return read(filepath.Join(m.tree.top("vms"), d.name, file))
}

// readFacts reads what no guest is asked for.
func (m *top) readFacts(d *detail) tea.Msg {
	var facts []string
	for _, file := range []string{"state", "address", "image", "cpus", "memory", "pid"} {
		text, err := m.of(d, file)
		if err != nil {
			why := m.why("cannot read "+d.name, err).Error()
			if codeOf(err) == exitNoVM && m.tree.check() == nil {
				why = d.name + " was removed"
			}
			return partMsg{d, func() { d.err = why }, m.readFacts}
		}
		if text = strings.TrimSpace(text); text != "" {
			facts = append(facts, file+" "+text)
		}
	}
	failed, _ := m.of(d, "error")
	text, _ := m.of(d, "events")
	events := orNone(lines(text))
	return partMsg{d, func() {
		d.err, d.facts, d.failed = "", facts, strings.TrimSpace(failed)
		d.events = events[max(0, len(events)-detailEvents):]
	}, m.readFacts}
}

// why says why something failed: first of all because no daemon is there.
func (m *top) why(doing string, err error) error {
	if gone := m.tree.check(); gone != nil {
		return gone
	}
	return explain(doing, "", err)
}

// readHealth blocks for the 3 seconds that a guest has to answer at most.
func (m *top) readHealth(d *detail) tea.Msg {
	text, err := m.of(d, "health")
	return partMsg{d, func() {
		if err == nil {
			d.health = strings.TrimSpace(text)
		}
	}, m.readHealth}
}

// readPorts blocks as readHealth does.
func (m *top) readPorts(d *detail) tea.Msg {
	text, err := m.of(d, "ports")
	ports := orNone(lines(text))
	if err != nil {
		ports = []string{"(" + m.why("not known", err).Error() + ")"}
	}
	return partMsg{d, func() { d.ports = ports }, m.readPorts}
}

func orNone(lines []string) []string {
	if len(lines) == 0 {
		return []string{"(none)"}
	}
	return lines
}

func lines(text string) []string {
	text = strings.TrimRight(text, "\n")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}
