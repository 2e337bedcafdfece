package main

import (
	"encoding/json"
	"strings"

	tea "charm.land/bubbletea/v2"
)

// detail holds the screen of one VM. The daemon escaped its text.
type detail struct {
	name string // immutable

	err    string // why the other fields are old
	facts  []string
	health string
	failed string // the file error
	ports  []string
	events []string
}

// partMsg is a part of the screen of one VM. Each part has its own pace, so that a guest that does
// not answer delays no other part.
type partMsg struct {
	of    *detail
	fill  func()
	again func(*detail) tea.Msg
}

// detailEvents bounds the events on the screen of one VM.
const detailEvents = 100

// readList and the other reads run in bubbletea's goroutines. They use only the model's tree.
func (m *top) readList() tea.Msg {
	text, err := read(m.tree.file("list.json"))
	if err != nil {
		return listMsg{err: m.why("cannot list the VMs", err)}
	}
	rows, err := parseList(text)
	return listMsg{rows, err}
}

func (m *top) readFigures(name string) tea.Cmd {
	return func() tea.Msg {
		text, err := read(m.tree.file("vms/" + name + "/stats.json"))
		if err != nil {
			return figuresMsg{name: name}
		}
		row := new(listRow)
		if json.Unmarshal([]byte(text), row) != nil {
			return figuresMsg{name: name}
		}
		return figuresMsg{name, row}
	}
}

// open shows the screen of a VM.
func (m *top) open(name string) tea.Cmd {
	d := &detail{name: name}
	m.detail = d
	var cmds []tea.Cmd
	for _, read := range []func(*detail) tea.Msg{m.readFacts, m.readHealth, m.readPorts} {
		cmds = append(cmds, func() tea.Msg { return read(d) })
	}
	return tea.Batch(cmds...)
}

// readFile reads a file of the VM.
func (m *top) readFile(d *detail, name string) (string, error) {
	return read(m.tree.file("vms/" + d.name + "/" + name))
}

// readFacts reads the files that need no answer of the guest.
func (m *top) readFacts(d *detail) tea.Msg {
	var facts []string
	for _, file := range []string{"state", "address", "image", "cpus", "memory", "pid"} {
		text, err := m.readFile(d, file)
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
	failed, _ := m.readFile(d, "error")
	text, _ := m.readFile(d, "events")
	events := orNone(lines(text))
	return partMsg{d, func() {
		d.err, d.facts, d.failed = "", facts, strings.TrimSpace(failed)
		d.events = events[max(0, len(events)-detailEvents):]
	}, m.readFacts}
}

// why returns the reason of a failure: above all that no daemon serves the tree.
func (m *top) why(doing string, err error) error {
	if gone := m.tree.check(); gone != nil {
		return gone
	}
	return explain(doing, "", err)
}

// readHealth blocks for at most 3 seconds, the guest's time to answer.
func (m *top) readHealth(d *detail) tea.Msg {
	text, err := m.readFile(d, "health")
	return partMsg{d, func() {
		if err == nil {
			d.health = strings.TrimSpace(text)
		}
	}, m.readHealth}
}

// readPorts blocks as long as readHealth.
func (m *top) readPorts(d *detail) tea.Msg {
	text, err := m.readFile(d, "ports")
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
